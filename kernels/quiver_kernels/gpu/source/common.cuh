// What all kernels share: number types, values of the four types as they lie in memory, Philox.
//
// NVRTC compiles this without any header. The arithmetic is the CPU kernels', operation by operation: the flags
// forbid fused multiply-adds and keep subnormal numbers (`quiver_kernels.gpu.compiling`). Dynamic shared memory is
// the only shared memory, through DYNAMIC_SHARED, so that the CPU shim of the tests can watch it.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) u8 name[]
#endif

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

template <class T>
__device__ __forceinline__ T least_of(T a, T b) {
    return b < a ? b : a;
}

template <class T>
__device__ __forceinline__ T most_of(T a, T b) {
    return a < b ? b : a;
}

// The values of a type: `Raw` is how they lie in memory, `Real` what they are widened to, exactly.

struct Float32 {
    using Raw = u32;
    using Real = float;
    static __device__ __forceinline__ float widen(u32 raw) { return __uint_as_float(raw); }
};

struct Float64 {
    using Raw = u64;
    using Real = double;
    static __device__ __forceinline__ double widen(u64 raw) { return __longlong_as_double((long long)raw); }
};

struct Bfloat16 {
    using Raw = u16;
    using Real = float;
    static __device__ __forceinline__ float widen(u16 raw) { return __uint_as_float((u32)raw << 16); }
};

struct Float16 {
    using Raw = u16;
    using Real = float;
    static __device__ __forceinline__ float widen(u16 raw) {
        u32 sign = (u32)(raw & 0x8000u) << 16;
        u32 magnitude = (u32)(raw & 0x7fffu) << 13;
        if (magnitude >= 0x0f800000u) return __uint_as_float(sign | magnitude | 0x7f800000u);
        // The exponents' biases differ by 112; subnormal numbers become normal ones by the same product.
        return __uint_as_float(sign | __float_as_uint(__uint_as_float(magnitude) * 0x1p112f));
    }
};

// The types by number, for kernels that are told theirs as they run: all threads take the same branch, and the compiler
// has one kernel to work on. Those that are bound by memory alone have one for each type.
enum Type : u32 { FLOAT16, BFLOAT16, FLOAT32, FLOAT64 };

// A value of any type but float64.
__device__ __forceinline__ float narrow_at(const void* __restrict__ x, u32 type, u64 i) {
    if (type == FLOAT32) return ((const float*)x)[i];
    u16 raw = ((const u16*)x)[i];
    return type == FLOAT16 ? Float16::widen(raw) : Bfloat16::widen(raw);
}

__device__ __forceinline__ double value_at(const void* __restrict__ x, u32 type, u64 i) {
    return type == FLOAT64 ? ((const double*)x)[i] : (double)narrow_at(x, type, i);
}

// Integers that are ordered as the values are, -0 before 0; and whether a value is finite.

struct Key32 {
    using Key = u32;
    static __device__ __forceinline__ u32 of(float value) {
        u32 raw = __float_as_uint(value);
        return raw >> 31 ? ~raw : raw | 0x80000000u;
    }
    static __device__ __forceinline__ bool finite(float value) {
        return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
    }
};

struct Key64 {
    using Key = u64;
    static __device__ __forceinline__ u64 of(double value) {
        u64 raw = (u64)__double_as_longlong(value);
        return raw >> 63 ? ~raw : raw | 0x8000000000000000ull;
    }
    static __device__ __forceinline__ bool finite(double value) {
        return ((u64)__double_as_longlong(value) & 0x7ff0000000000000ull) != 0x7ff0000000000000ull;
    }
};

template <class Real>
struct KeyOf;
template <>
struct KeyOf<float> : Key32 {};
template <>
struct KeyOf<double> : Key64 {};

// How a type's values are counted: the layout of `quiver_kernels.partition`.

template <class Real>
struct Layout;
template <>
struct Layout<float> {
    using Int = int;
    static constexpr int offset_bits = 16;
    static __device__ __forceinline__ int bits(float value) { return (int)(__float_as_uint(value) & 0x7fffffffu); }
};
template <>
struct Layout<double> {
    using Int = long long;
    static constexpr int offset_bits = 45;
    static __device__ __forceinline__ long long bits(double value) {
        return __double_as_longlong(value) & 0x7fffffffffffffffll;
    }
};

// Cell of a value and the offset in it.
struct Place {
    long long cell;
    u64 offset;
};

// `scale` is 1 over the width of the outer cells, `top` the integer of the magnitude where these begin.
template <class Real>
__device__ __forceinline__ Place place_of(Real value, double scale, long long top) {
    using Plan = Layout<Real>;
    using Int = typename Plan::Int;
    constexpr Int unit = (Int)1 << Plan::offset_bits;
    const Int first = (Int)(top >> Plan::offset_bits), ahead = first - 128;
    Int bits = Plan::bits(value), cell = bits >> Plan::offset_bits, offset = bits & (unit - 1);
    if (cell >= first) {
        Real steps = (value < 0 ? -value : value) * (Real)scale;
        Int whole = (Int)steps;
        cell = whole + ahead;
        offset = (Int)((steps - (Real)whole) * (Real)unit);
    }
    // -0 is not below 0, and is counted as 0.
    return {value < 0 ? ~(long long)cell : (long long)cell, (u64)offset};
}

__device__ __forceinline__ Place place_at(
    const void* __restrict__ x, u32 type, u64 i, double scale, long long top) {
    if (type == FLOAT64) return place_of<double>(((const double*)x)[i], scale, top);
    return place_of<float>(narrow_at(x, type, i), scale, top);
}

// Keys that put the values of a slice of a vector into the order of their rows, and of their places within a row:
// the row's number, and below it the place in the slice. Those of no row come last.
constexpr u32 PLACE_BITS = 24;
constexpr u64 PLACES = (1ull << PLACE_BITS) - 1;
constexpr u64 OF_NO_ROW = ~0ull;

__device__ __forceinline__ u64 key_in_row(u64 row, u64 place) { return row << PLACE_BITS | place; }

// One cell: how many values, the sum of the lower 32 bits of their offsets and of what is above, and the
// outermost offsets. All of a cell that has none: no values, nearest with all bits set.
struct Cell {
    u64 number;
    u64 low;
    u64 high;
    u64 nearest;
    u64 farthest;

    template <int offset_bits>
    __device__ __forceinline__ void add(u64 offset) {
        atomicAdd(&number, 1ull);
        atomicAdd(&low, offset & 0xffffffffull);
        if (offset_bits > 32) atomicAdd(&high, offset >> 32);
        extend(offset);
    }

    // Most values are not outermost; what is read may be old, and is then further in.
    __device__ __forceinline__ void extend(u64 offset) {
        if (offset < nearest) atomicMin(&nearest, offset);
        if (offset > farthest) atomicMax(&farthest, offset);
    }
};

// Calls work(raw, index) for every value, in any order: 16 bytes at a time where these are aligned.
struct alignas(16) Sixteen {
    u32 words[4];
};

template <class Raw>
__device__ __forceinline__ Raw raw_of(const Sixteen& bytes, u32 j) {
    if constexpr (sizeof(Raw) == 2) return (Raw)(bytes.words[j / 2] >> 16 * (j % 2));
    if constexpr (sizeof(Raw) == 4) return bytes.words[j];
    if constexpr (sizeof(Raw) == 8) return bytes.words[2 * j] | (u64)bytes.words[2 * j + 1] << 32;
}

template <class Raw, class Work>
__device__ __forceinline__ void each_value(const Raw* __restrict__ x, u64 n, const Work& work) {
    constexpr u32 MANY = 16 / sizeof(Raw);
    u64 thread = (u64)blockIdx.x * blockDim.x + threadIdx.x, step = (u64)gridDim.x * blockDim.x;
    u64 head = least_of(n, (16 - (u64)x % 16) % 16 / (u64)sizeof(Raw)), packs = (n - head) / MANY;
    const Sixteen* __restrict__ packed = (const Sixteen*)(x + head);
    for (u64 i = thread; i < packs; i += step) {
        Sixteen bytes = packed[i];
#pragma unroll
        for (u32 j = 0; j < MANY; j++) work(raw_of<Raw>(bytes, j), head + i * MANY + j);
    }
    u64 rest = n - packs * MANY;
#pragma unroll 1
    for (u64 i = thread; i < rest; i += step) {
        u64 at = i < head ? i : i + packs * MANY;
        work(x[at], at);
    }
}

// Philox4x32-10: the words of elements 4 * group .. 4 * group + 3. See `quiver_kernels.rng`.
__device__ __forceinline__ void philox(u64 seed, u32 stream, u64 group, u32 (&words)[4]) {
    u32 c0 = (u32)group, c1 = (u32)(group >> 32), c2 = stream, c3 = 0;
    u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u64 p0 = (u64)0xD2511F53u * c0, p1 = (u64)0xCD9E8D57u * c2;
        u32 n0 = (u32)(p1 >> 32) ^ c1 ^ k0, n2 = (u32)(p0 >> 32) ^ c3 ^ k1;
        c0 = n0, c1 = (u32)p1, c2 = n2, c3 = (u32)p0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

// The interval of x: the greatest k up to s - 2 with levels[k] <= x, 0 if there is none. `first_step` is the
// greatest power of two up to s - 2, or 0.
template <class T>
__device__ __forceinline__ u32 interval_of(T x, const T* levels, u32 s, u32 first_step) {
    u32 k = 0;
    for (u32 step = first_step; step > 0; step >>= 1) {
        u32 next = k + step;
        if (next < s - 1 && x >= levels[next]) k = next;
    }
    return k;
}

__device__ __forceinline__ u32 first_step_of(u32 s) { return s > 2 ? 1u << (31 - __clz((int)(s - 2))) : 0; }

// The code of the element at `place` of row r; codes of a row begin on a byte.
__device__ __forceinline__ u32 code_at(const u8* __restrict__ codes, u64 r, u64 place, u64 stride, u32 bits) {
    u64 bit = place * bits;
    const u8* at = codes + r * stride + bit / 8;
    u32 shift = (u32)(bit % 8), word = at[0];
    if (shift + bits > 8) word |= (u32)at[1] << 8;
    return word >> shift & ((1u << bits) - 1);
}

// One of many vectors that a launch does: where it lies among the values of all, its values, those that share a level
// table, where its first table and that table's reciprocals of gaps begin, levels of a table, the power of two for
// its errors; seeds and place among workers as of `encode`; bits of a code, where its codes begin; the numbers, among
// those of all vectors, of its first tile of codes and of its first piece of errors.
struct Job {
    u64 start;
    u64 size;
    u64 row;
    u64 levels;
    u64 inverse;
    u64 s;
    double unit;
    u64 seed;
    u64 shared_seed;
    u64 shifts;
    u64 units;
    u64 world_size;
    u64 bits;
    u64 codes;
    u64 first_tile;
    u64 first_piece;
};

// The last of `count` jobs whose `first` is at most `number`.
template <u64 Job::*first>
__device__ __forceinline__ const Job& job_of(const Job* __restrict__ jobs, u32 count, u64 number) {
    u32 found = 0;
    for (u32 size = count; size > 1;) {
        u32 half = size / 2;
        if (jobs[found + half].*first <= number) found += half;
        size -= half;
    }
    return jobs[found];
}
