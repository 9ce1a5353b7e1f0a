// Sums of decoded vectors in float64, vector by vector: each value's terms are added in that order.
#include "common.cuh"

// Adds to every total its entry of the tables; `most` as for `decode`.
extern "C" __global__ void __launch_bounds__(256) mean_add(
    const u8* __restrict__ codes, u64 n, u64 row, const double* __restrict__ tables, u32 s, u32 bits,
    double* __restrict__ totals, u32* most) {
    u64 stride = (row * bits + 7) / 8, step = (u64)gridDim.x * blockDim.x;
    u32 beyond = 0;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        u64 r = row >= n ? 0 : i / row;
        u32 code = code_at(codes, r, i - r * row, stride, bits);
        if (code >= s) {
            beyond = most_of(beyond, code);
            code = s - 1;
        }
        totals[i] += tables[r * s + code];
    }
    if (beyond > 0) atomicMax(most, beyond);
}
