// The values in some rows of a vector's cells: collected, or counted into the pieces that these rows are cut into.
// See `quiver_kernels.cells.Cut`.
#include "common.cuh"

// A row of a cut: its cell, counted from a base, the offsets where it begins and ends, the number of its first
// piece, and the bits of an offset that do not choose the piece. Rows ascend by cell and offset.
struct Row {
    u64 cell;
    u64 nearest;
    u64 farthest;
    u64 first;
    u64 shift;
};

// Values that a thread has in hand at a time.
constexpr u32 HELD = 4;

// Where the values lie, and in which rows: `flags` has a bit for every cell, set where a row is.
struct Cut {
    double scale;
    long long top;
    long long base;
    const u32* flags;
    const Row* rows;
    u32 size;
};

// The row that a place is in, or null.
__device__ __forceinline__ const Row* row_of(const Place& place, const Cut& cut) {
    u64 cell = (u64)(place.cell - cut.base);
    if (!(cut.flags[cell / 32] >> (cell % 32) & 1)) return nullptr;
    u32 low = 0, high = cut.size;
    while (high - low > 1) {
        u32 middle = low + (high - low) / 2;
        const Row& row = cut.rows[middle];
        if (row.cell < cell || (row.cell == cell && row.nearest <= place.offset)) low = middle;
        else high = middle;
    }
    const Row* row = cut.rows + low;
    return row->cell == cell && row->nearest <= place.offset && place.offset <= row->farthest ? row : nullptr;
}

// The piece of a row that a place is in.
__device__ __forceinline__ u64 piece_of(const Place& place, const Row& row) {
    return row.first + ((place.offset - row.nearest) >> row.shift);
}

// Copies the values in the rows to `out`, which has room for `room` of them; `taken` counts them all.
template <class Value>
__device__ __forceinline__ void collect(
    const typename Value::Raw* __restrict__ x, u64 n, const Cut& cut, typename Value::Raw* out, u64 room, u64* taken) {
    using Real = typename Value::Real;
    u32 lane = threadIdx.x % WARP;
    u64 tile = (u64)blockDim.x * HELD;
    // All lanes of a warp make the same rounds: they share out places together.
    for (u64 start = blockIdx.x * tile; start < n; start += gridDim.x * tile) {
        typename Value::Raw held[HELD];
#pragma unroll
        for (u32 j = 0; j < HELD; j++) {
            u64 i = start + j * blockDim.x + threadIdx.x;
            held[j] = i < n ? x[i] : 0;
        }
        u32 hits[HELD], total = 0;
#pragma unroll
        for (u32 j = 0; j < HELD; j++) {
            bool inside = start + j * blockDim.x + threadIdx.x < n;
            bool hit = inside && row_of(place_of<Real>(Value::widen(held[j]), cut.scale, cut.top), cut) != nullptr;
            hits[j] = __ballot_sync(ALL_LANES, hit);
            total += __popc(hits[j]);
        }
        if (total == 0) continue;
        u64 place = lane == 0 ? atomicAdd(taken, (u64)total) : 0;
        place = __shfl_sync(ALL_LANES, place, 0);
#pragma unroll
        for (u32 j = 0; j < HELD; j++) {
            u64 mine = place + __popc(hits[j] & ((1u << lane) - 1));
            if ((hits[j] >> lane & 1) && mine < room) out[mine] = held[j];
            place += __popc(hits[j]);
        }
    }
}

// Counts the values in the rows into `pieces`.
template <class Value>
__device__ __forceinline__ void refine(const typename Value::Raw* __restrict__ x, u64 n, const Cut& cut, Cell* pieces) {
    using Real = typename Value::Real;
    each_value(x, n, [&](typename Value::Raw raw, u64) {
        Place place = place_of<Real>(Value::widen(raw), cut.scale, cut.top);
        const Row* row = row_of(place, cut);
        if (row == nullptr) return;
        Cell* piece = pieces + piece_of(place, *row);
        piece->template add<Layout<Real>::offset_bits>(place.offset);
    });
}

// Where the values in the rows lie that weigh something: `taken` of them, of which `out` has room for `room`, in any
// order.
extern "C" __global__ void __launch_bounds__(256) pick_find(
    const void* __restrict__ x, u32 type, const double* __restrict__ weights, u64 n, double scale, long long top,
    long long base, const u32* __restrict__ flags, const Row* __restrict__ rows, u32 size, u64* __restrict__ out,
    u64 room, u64* taken) {
    const Cut cut = {scale, top, base, flags, rows, size};
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        if (!(weights[i] > 0) || row_of(place_at(x, type, i, scale, top), cut) == nullptr) continue;
        u64 place = atomicAdd(taken, 1ull);
        if (place < room) out[place] = i;
    }
}

// Keys of the pieces that the values of a slice lie in, if they weigh something.
extern "C" __global__ void __launch_bounds__(256) pick_pieces(
    const void* __restrict__ x, u32 type, const double* __restrict__ weights, u64 n, double scale, long long top,
    long long base, const u32* __restrict__ flags, const Row* __restrict__ rows, u32 size, u64* __restrict__ keys) {
    const Cut cut = {scale, top, base, flags, rows, size};
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        Place place = place_at(x, type, i, scale, top);
        const Row* row = weights[i] > 0 ? row_of(place, cut) : nullptr;
        keys[i] = row == nullptr ? OF_NO_ROW : key_in_row(piece_of(place, *row), i);
    }
}

#define COLLECT_KERNEL(name, Value)                                                                                \
    extern "C" __global__ void __launch_bounds__(256)                                                              \
        name(const Value::Raw* __restrict__ x, u64 n, double scale, long long top, long long base,                 \
             const u32* __restrict__ flags, const Row* __restrict__ rows, u32 size, Value::Raw* __restrict__ out,  \
             u64 room, u64* taken) {                                                                               \
        collect<Value>(x, n, {scale, top, base, flags, rows, size}, out, room, taken);                             \
    }

#define REFINE_KERNEL(name, Value)                                                                                 \
    extern "C" __global__ void __launch_bounds__(256)                                                              \
        name(const Value::Raw* __restrict__ x, u64 n, double scale, long long top, long long base,                 \
             const u32* __restrict__ flags, const Row* __restrict__ rows, u32 size, Cell* __restrict__ pieces) {   \
        refine<Value>(x, n, {scale, top, base, flags, rows, size}, pieces);                                        \
    }

COLLECT_KERNEL(collect_float16, Float16)
COLLECT_KERNEL(collect_bfloat16, Bfloat16)
COLLECT_KERNEL(collect_float32, Float32)
COLLECT_KERNEL(collect_float64, Float64)
REFINE_KERNEL(refine_float16, Float16)
REFINE_KERNEL(refine_bfloat16, Bfloat16)
REFINE_KERNEL(refine_float32, Float32)
REFINE_KERNEL(refine_float64, Float64)
