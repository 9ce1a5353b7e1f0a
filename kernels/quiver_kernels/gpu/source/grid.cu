// Weights of the points of a uniform grid: each value is split between the two points around it, in whole shares,
// so in any order. The arithmetic is `quiver_kernels.cpu.approx.add_to_grid`'s.
#include "common.cuh"

constexpr u32 THREADS = 512;
// Adding and taking away this number rounds to whole shares.
constexpr double ROUNDS_SHARES = 1.5 * 0x1p32;
constexpr u32 WHOLE_SHARE = 1u << 20;

// Adds to a sum of 32 bits in shared memory; what does not fit into it is carried to the whole one.
__device__ __forceinline__ void add_share(u32* near, u64* whole, u32 share) {
    u32 before = atomicAdd(near, share);
    if (before + share < before) atomicAdd(whole, 1ull << 32);
}

// `unit` brings values near 1, `base` is the least of them then, `per_cell` the cells in 1; `points` sums fit into
// shared memory if `is_near`.
template <class Value>
__device__ __forceinline__ void add_to_grid(
    const typename Value::Raw* __restrict__ x,
    u64 n,
    double unit,
    double base,
    double per_cell,
    u32 points,
    u32 is_near,
    u64* sums) {
    DYNAMIC_SHARED(shared);
    u32* near = (u32*)shared;
    u32 held = is_near ? points : 0;
    for (u32 i = threadIdx.x; i < held; i += THREADS) near[i] = 0;
    __syncthreads();
    each_value(x, n, [&](typename Value::Raw raw, u64) {
        double place = ((double)Value::widen(raw) * unit - base) * per_cell;
        u32 c = least_of((u32)place, points - 2);
        double share = least_of(place - (double)c, 1.0);
        u32 upper = (u32)(((share + ROUNDS_SHARES) - ROUNDS_SHARES) * (double)WHOLE_SHARE);
        if (is_near) {
            add_share(near + c, sums + c, WHOLE_SHARE - upper);
            add_share(near + c + 1, sums + c + 1, upper);
        } else {
            atomicAdd(sums + c, (u64)(WHOLE_SHARE - upper));
            atomicAdd(sums + c + 1, (u64)upper);
        }
    });
    __syncthreads();
    for (u32 i = threadIdx.x; i < held; i += THREADS)
        if (near[i] > 0) atomicAdd(sums + i, (u64)near[i]);
}

#define GRID_KERNEL(name, Value)                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                      \
        name(const Value::Raw* __restrict__ x, u64 n, double unit, double base, double per_cell, u32 points,   \
             u32 is_near, u64* sums) {                                                                         \
        add_to_grid<Value>(x, n, unit, base, per_cell, points, is_near, sums);                                 \
    }

GRID_KERNEL(grid_float16, Float16)
GRID_KERNEL(grid_bfloat16, Bfloat16)
GRID_KERNEL(grid_float32, Float32)
GRID_KERNEL(grid_float64, Float64)
