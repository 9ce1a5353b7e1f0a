// Values counted into the cells of a partition: integers, so in any order. See `quiver_kernels.partition`.
//
// Rows of the table are cells from a base on. Those that most values fall into have a slot in the shared memory of
// each block: the first `negatives` rows, and all rows after the `skipped` ones that follow these. Slots are added to
// the table once, at the end; values of other rows at once.
#include "common.cuh"

// What a slot holds, in 16 bytes. 32-bit numbers are what shared memory adds quickly. A sum that overflows is
// carried to the table: 2^32 there is one of `high`.
template <class Real>
struct Slot;

template <>
struct Slot<float> {
    u32 number, low, nearest, farthest;

    __device__ __forceinline__ void clear() { number = 0, low = 0, nearest = ~0u, farthest = 0; }

    __device__ __forceinline__ void add(u64 offset, Cell* row) {
        u32 place = (u32)offset;
        atomicAdd(&number, 1u);
        u32 before = atomicAdd(&low, place);
        if (before + place < before) atomicAdd(&row->high, 1ull);
        if (place < nearest) atomicMin(&nearest, place);
        if (place > farthest) atomicMax(&farthest, place);
    }

    __device__ __forceinline__ void flush(Cell* row) const {
        if (number == 0) return;
        atomicAdd(&row->number, (u64)number);
        atomicAdd(&row->low, (u64)low);
        atomicMin(&row->nearest, (u64)nearest);
        atomicMax(&row->farthest, (u64)farthest);
    }
};

// Offsets of 45 bits are added up in three parts; the outermost ones, which seldom change, in the table.
template <>
struct Slot<double> {
    static constexpr u32 BITS = 15;
    u32 number, parts[3];

    __device__ __forceinline__ void clear() { number = 0, parts[0] = 0, parts[1] = 0, parts[2] = 0; }

    __device__ __forceinline__ void add(u64 offset, Cell* row) {
        atomicAdd(&number, 1u);
#pragma unroll
        for (u32 k = 0; k < 3; k++) {
            u32 part = (u32)(offset >> BITS * k) & ((1u << BITS) - 1);
            u32 before = atomicAdd(&parts[k], part);
            if (before + part < before) atomicAdd(&row->high, 1ull << BITS * k);
        }
        row->extend(offset);
    }

    __device__ __forceinline__ void flush(Cell* row) const {
        if (number == 0) return;
        atomicAdd(&row->number, (u64)number);
        atomicAdd(&row->low, parts[0] + ((u64)parts[1] << BITS) + ((u64)(parts[2] & 3) << 2 * BITS));
        atomicAdd(&row->high, (u64)(parts[2] >> 2));
    }
};

template <class Value>
__device__ __forceinline__ void count_cells(
    const typename Value::Raw* __restrict__ x,
    u64 n,
    double scale,
    long long top,
    long long base,
    u32 negatives,
    u32 skipped,
    u32 slots,
    Cell* cells) {
    using Real = typename Value::Real;
    DYNAMIC_SHARED(shared);
    Slot<Real>* near = (Slot<Real>*)shared;
    for (u32 i = threadIdx.x; i < slots; i += blockDim.x) near[i].clear();
    __syncthreads();
    // Many vectors are full of zeros, whose cell has no slot: they are counted apart.
    u32 zeros = 0;
    each_value(x, n, [&](typename Value::Raw raw, u64) {
        Real value = Value::widen(raw);
        if (value == 0) {
            zeros++;
            return;
        }
        Place place = place_of<Real>(value, scale, top);
        u32 row = (u32)(place.cell - base);
        bool before = row < negatives;
        if (before || row - negatives >= skipped) {
            near[before ? row : row - skipped].add(place.offset, cells + row);
        } else {
            cells[row].template add<Layout<Real>::offset_bits>(place.offset);
        }
    });
    __syncthreads();
    for (u32 i = threadIdx.x; i < slots; i += blockDim.x) near[i].flush(cells + (i < negatives ? i : i + skipped));
    for (u32 far = WARP / 2; far > 0; far /= 2) zeros += __shfl_xor_sync(ALL_LANES, zeros, far);
    if (threadIdx.x % WARP == 0 && zeros > 0) {
        atomicAdd(&cells[-base].number, (u64)zeros);
        cells[-base].extend(0);
    }
}

extern "C" __global__ void __launch_bounds__(256) cells_clear(Cell* cells, u64 size) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += step) cells[i] = {0, 0, 0, ~0ull, 0};
}

#define CELLS_KERNEL(name, Value)                                                                              \
    extern "C" __global__ void __launch_bounds__(512) name(                                                    \
        const Value::Raw* __restrict__ x, u64 n, double scale, long long top, long long base, u32 negatives,   \
        u32 skipped, u32 slots, Cell* cells) {                                                                 \
        count_cells<Value>(x, n, scale, top, base, negatives, skipped, slots, cells);                          \
    }

CELLS_KERNEL(cells_float16, Float16)
CELLS_KERNEL(cells_bfloat16, Bfloat16)
CELLS_KERNEL(cells_float32, Float32)
CELLS_KERNEL(cells_float64, Float64)
