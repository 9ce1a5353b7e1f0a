// Runs CUDA kernels on a CPU, from their own source: one fiber for each thread, one block after the other.
//
// A fiber runs until it waits for others; which one runs next is drawn at random. Shared memory and fresh device
// memory hold poison, and end at a page that nobody may touch. What goes wrong (an access outside, a barrier that
// not all threads reach, an argument of the wrong size) becomes an error code and a text, not a crash.
//
// Not seen here: races between two barriers within one run of a fiber, the memory model, blocks side by side.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define DYNAMIC_SHARED(name) unsigned char* name = shim::shared

struct ShimIndex {
    unsigned x, y, z;
};

// Not static: a fiber must read them anew after every switch.
ShimIndex threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 128 << 10, kMostShared = 227 << 10;
constexpr unsigned char kPoison = 0xCD;
constexpr int kOk = 0, kBadLaunch = 1, kBarrier = 2, kMemory = 3;

enum State { kReady, kAtBarrier, kAtWarp, kDone };

struct Fiber {
    ucontext_t begin;
    // Where it goes on, once it has begun; unlike contexts, jumps make no system calls.
    jmp_buf place;
    bool begun;
    State state;
    int site;
    unsigned mask;
    char* stack;
};

unsigned char* shared;
static std::vector<Fiber> fibers;
static std::vector<unsigned> ready;
static std::vector<uint64_t> slots;
static jmp_buf scheduler;
static unsigned current;
static uint64_t random_state;
static int status;
// Line of a barrier that does nothing: a fault for the tests to find.
static int skipped_line;
static char message[256];
static void (*run_kernel)(void**);
static void** kernel_arguments;

inline void fail(int code, const char* format, ...) {
    if (status != kOk) return;
    status = code;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
}

inline uint64_t draw() {
    uint64_t z = (random_state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// -- threads --------------------------------------------------------------------------------

__attribute__((noinline)) inline void suspend() {
    if (_setjmp(fibers[current].place) == 0) _longjmp(scheduler, 1);
}

__attribute__((noinline)) inline void resume() {
    Fiber& fiber = fibers[current];
    if (_setjmp(scheduler) != 0) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    setcontext(&fiber.begin);
}

inline void wait(State state, int site, unsigned mask) {
    Fiber& fiber = fibers[current];
    fiber.state = state, fiber.site = site, fiber.mask = mask;
    suspend();
}

// One thread of every block that is run.
inline void body() {
    for (;;) {
        run_kernel(kernel_arguments);
        fibers[current].state = kDone;
        suspend();
    }
}

inline void release(unsigned from, unsigned to) {
    for (unsigned i = from; i < to; i++) {
        if (fibers[i].state != kAtBarrier && fibers[i].state != kAtWarp) continue;
        fibers[i].state = kReady;
        ready.push_back(i);
    }
}

// After thread `i` has arrived at a warp's meeting: lets all go if it was the last.
inline void meet_warp(unsigned i) {
    unsigned from = i / kWarp * kWarp, arrived = 0;
    for (unsigned j = 0; j < kWarp; j++) {
        const Fiber& fiber = fibers[from + j];
        if (fiber.state != kAtWarp || fiber.site != fibers[i].site) continue;
        if (fiber.mask != fibers[i].mask) return fail(kBarrier, "line %d: a warp's lanes name different masks", fiber.site);
        arrived |= 1u << j;
    }
    if (!(fibers[i].mask >> (i - from) & 1)) return fail(kBarrier, "line %d: a lane is not in its own mask", fibers[i].site);
    if (arrived == fibers[i].mask) release(from, from + kWarp);
}

inline void run_block(unsigned threads) {
    ready.clear();
    for (unsigned i = 0; i < threads; i++) {
        fibers[i].state = kReady;
        ready.push_back(i);
    }
    unsigned waiting = 0, done = 0;
    int site = 0;
    while (done < threads && status == kOk) {
        if (ready.empty()) {
            if (waiting == 0) return fail(kBarrier, "threads wait for lanes of their warp that never come");
            return fail(kBarrier, "line %d: %u of %u threads are at the barrier, %u have ended", site, waiting, threads, done);
        }
        unsigned place = draw() % ready.size();
        current = ready[place];
        ready[place] = ready.back();
        ready.pop_back();
        threadIdx = {current, 0, 0};
        resume();
        if (status != kOk) return;
        Fiber& fiber = fibers[current];
        if (fiber.state == kDone) done++;
        if (fiber.state == kAtWarp) meet_warp(current);
        if (fiber.state == kAtBarrier) {
            if (waiting > 0 && fiber.site != site) return fail(kBarrier, "lines %d and %d: threads wait at two barriers", site, fiber.site);
            site = fiber.site;
            if (++waiting == threads) {
                release(0, threads);
                waiting = 0;
            }
        }
    }
}

inline void on_fault(int, siginfo_t* info, void*) {
    fail(kMemory, "block %u, thread %u: access to address %p, outside of all memory", blockIdx.x, threadIdx.x, info->si_addr);
    _longjmp(scheduler, 1);
}

// -- memory ---------------------------------------------------------------------------------

struct Region {
    char* map;
    size_t mapped;
    unsigned char* data;
    size_t size, room;
};

static std::vector<Region*> regions;

inline Region* make_region(size_t size) {
    size_t page = sysconf(_SC_PAGESIZE), room = (size + 15) / 16 * 16;
    size_t used = (room + page - 1) / page * page, mapped = used + 2 * page;
    char* map = (char*)mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) return nullptr;
    if (used > 0) mprotect(map + page, used, PROT_READ | PROT_WRITE);
    memset(map + page, kPoison, used);
    // Aligned to 16 bytes, and ending at the guard page.
    return new Region{map, mapped, (unsigned char*)map + page + used - room, size, room};
}

inline void check_region(const Region& region, const char* what) {
    long page = sysconf(_SC_PAGESIZE);
    for (const unsigned char* at = (unsigned char*)region.map + page; at < region.data; at++)
        if (*at != kPoison) return fail(kMemory, "%s: written %ld bytes before its begin", what, (long)(region.data - at));
    for (size_t i = region.size; i < region.room; i++)
        if (region.data[i] != kPoison) return fail(kMemory, "%s: written %zu bytes beyond its end", what, i - region.size + 1);
}

inline void drop_region(Region* region) {
    munmap(region->map, region->mapped);
    delete region;
}

// -- launching ------------------------------------------------------------------------------

struct Shape {
    uint32_t grid, block, shared;
    uint64_t seed;
};

inline void run_grid(const Shape& shape) {
    while (fibers.size() < shape.block) {
        fibers.push_back(Fiber{});
        fibers.back().stack =
            (char*)mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    // Those of a launch that failed are in the middle of it.
    for (Fiber& fiber : fibers) {
        getcontext(&fiber.begin);
        fiber.begin.uc_stack.ss_sp = fiber.stack;
        fiber.begin.uc_stack.ss_size = kStack;
        makecontext(&fiber.begin, body, 0);
        fiber.begun = false;
    }
    slots.resize(shape.block);
    gridDim = {shape.grid, 1, 1};
    blockDim = {shape.block, 1, 1};
    random_state = shape.seed;
    Region* memory = make_region(shape.shared);
    shared = memory->data;
    struct sigaction handler = {}, segv, bus;
    handler.sa_sigaction = on_fault;
    handler.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &handler, &segv);
    sigaction(SIGBUS, &handler, &bus);
    for (unsigned b = 0; b < shape.grid && status == kOk; b++) {
        blockIdx = {b, 0, 0};
        memset(memory->data, kPoison, memory->room);
        run_block(shape.block);
        check_region(*memory, "shared memory");
    }
    sigaction(SIGSEGV, &segv, nullptr);
    sigaction(SIGBUS, &bus, nullptr);
    for (const Region* region : regions) check_region(*region, "device memory");
    drop_region(memory);
}

template <class... A, size_t... I>
void apply(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(A*)arguments[I]...);
}

template <class... A>
int launch(
    void (*kernel)(A...), void (*run)(void**), const Shape& shape, void** arguments, const uint32_t* sizes, uint32_t count) {
    const uint32_t wanted[] = {sizeof(A)...};
    status = kOk;
    if (count != sizeof...(A)) fail(kBadLaunch, "%zu arguments are wanted, got %u", sizeof...(A), count);
    for (uint32_t i = 0; i < count && status == kOk; i++)
        if (sizes[i] != wanted[i]) fail(kBadLaunch, "argument %u has %u bytes, got %u", i, wanted[i], sizes[i]);
    if (shape.grid == 0 || shape.grid > 0x7fffffffu) fail(kBadLaunch, "a grid of %u blocks", shape.grid);
    if (shape.block == 0 || shape.block > 1024 || shape.block % kWarp) fail(kBadLaunch, "a block of %u threads", shape.block);
    if (shape.shared > kMostShared) fail(kBadLaunch, "%u bytes of shared memory", shape.shared);
    if (status != kOk) return status;
    run_kernel = run;
    kernel_arguments = arguments;
    run_grid(shape);
    return status;
}

template <class T>
T exchange_xor(int site, unsigned mask, T value, unsigned far) {
    unsigned self = current;
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    slots[self] = bits;
    wait(kAtWarp, site, mask);
    bits = slots[self ^ far];
    wait(kAtWarp, -site, mask);
    memcpy(&value, &bits, sizeof value);
    return value;
}

// The value of the lane `from` of the own warp.
template <class T>
T value_of(int site, unsigned mask, T value, unsigned from) {
    return exchange_xor(site, mask, value, (current ^ from) % kWarp);
}

inline unsigned ballot(int site, unsigned mask, bool vote) {
    slots[current] = vote;
    wait(kAtWarp, site, mask);
    unsigned found = 0;
    for (unsigned lane = 0; lane < kWarp; lane++)
        if (mask >> lane & 1 && slots[current / kWarp * kWarp + lane]) found |= 1u << lane;
    wait(kAtWarp, -site, mask);
    return found;
}

inline void barrier(int line) {
    if (line != skipped_line) wait(kAtBarrier, line, 0);
}

inline void meeting(int line) {
    if (line != skipped_line) wait(kAtWarp, line, ~0u);
}

template <class To, class From>
To as(From value) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To result;
    memcpy(&result, &value, sizeof result);
    return result;
}

}  // namespace shim

#define __syncthreads() shim::barrier(__LINE__)
#define __syncwarp() shim::meeting(__LINE__)
#define __shfl_xor_sync(mask, value, far) shim::exchange_xor(__LINE__, mask, value, far)
#define __shfl_sync(mask, value, from) shim::value_of(__LINE__, mask, value, from)
#define __ballot_sync(mask, vote) shim::ballot(__LINE__, mask, vote)

template <class T>
T atomicAdd(T* at, T value) {
    T old = *at;
    *at = old + value;
    return old;
}

template <class T>
T atomicCAS(T* at, T expected, T value) {
    T old = *at;
    if (old == expected) *at = value;
    return old;
}

template <class T>
T atomicMin(T* at, T value) {
    T old = *at;
    if (value < old) *at = value;
    return old;
}

template <class T>
T atomicMax(T* at, T value) {
    T old = *at;
    if (old < value) *at = value;
    return old;
}

inline float __uint_as_float(unsigned bits) { return shim::as<float>(bits); }
inline unsigned __float_as_uint(float value) { return shim::as<unsigned>(value); }
inline double __longlong_as_double(long long bits) { return shim::as<double>(bits); }
inline long long __double_as_longlong(double value) { return shim::as<long long>(value); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz((unsigned)value); }

extern "C" {

void shim_skip_barrier(int line) { shim::skipped_line = line; }

const char* shim_message() { return shim::message; }

void* shim_allocate(uint64_t size) {
    shim::Region* region = shim::make_region(size);
    if (region != nullptr) shim::regions.push_back(region);
    return region;
}

int shim_regions() { return (int)shim::regions.size(); }

void* shim_address(void* region) { return ((shim::Region*)region)->data; }

void shim_free(void* region) {
    for (size_t i = 0; i < shim::regions.size(); i++)
        if (shim::regions[i] == region) shim::regions.erase(shim::regions.begin() + i);
    shim::drop_region((shim::Region*)region);
}
}

#define SHIM_KERNEL(space, name)                                                                            \
    static void shim_run_##name(void** arguments) {                                                         \
        [&]<class... A>(void (*kernel)(A...)) {                                                             \
            shim::apply(kernel, arguments, std::index_sequence_for<A...>{});                                \
        }(space::name);                                                                                     \
    }                                                                                                       \
    extern "C" int shim_launch_##name(                                                                      \
        const shim::Shape* shape, void** arguments, const uint32_t* sizes, uint32_t count) {                \
        return shim::launch(space::name, shim_run_##name, *shape, arguments, sizes, count);                 \
    }
