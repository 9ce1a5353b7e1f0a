// What kernels must not do: the shim has to find each of these.
#include "common.cuh"

#define PLANTED extern "C" __global__ void

PLANTED nothing_wrong(u32* data, u32 n) {
    DYNAMIC_SHARED(shared);
    u32* near = (u32*)shared;
    near[threadIdx.x] = threadIdx.x < n ? data[threadIdx.x] : 0;
    __syncthreads();
    u32 other = near[blockDim.x - 1 - threadIdx.x];
    u32 least = least_of(other, __shfl_xor_sync(ALL_LANES, other, 1));
    if (threadIdx.x < n) data[threadIdx.x] = least;
}

PLANTED reads_beyond(u32* data, u32 n) {
    if (threadIdx.x == 0) data[0] = data[n];
}

PLANTED writes_beyond(u32* data, u32 n) { data[threadIdx.x <= n ? threadIdx.x : n] = 1; }

PLANTED writes_before(u32* data, u32 n) {
    if (threadIdx.x == n / 2) data[-1] = 1;
}

PLANTED writes_beyond_shared(u32* data, u32 n) {
    DYNAMIC_SHARED(shared);
    ((u32*)shared)[threadIdx.x + 1] = n;
    __syncthreads();
    data[0] = n;
}

PLANTED null_pointer(u32*, u32 n) { *(u32*)(u64)(n - n) = 1; }

PLANTED some_return_early(u32* data, u32 n) {
    if (threadIdx.x == 5) return;
    __syncthreads();
    data[0] = n;
}

PLANTED two_barriers(u32* data, u32 n) {
    if (threadIdx.x < 7) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    data[0] = n;
}

PLANTED a_lane_is_missing(u32* data, u32 n) {
    if (threadIdx.x == 5) return;
    data[0] = __shfl_xor_sync(ALL_LANES, n, 1);
}

PLANTED two_masks(u32* data, u32 n) {
    data[0] = __shfl_xor_sync(threadIdx.x < 3 ? ALL_LANES : ALL_LANES << 3, n, 1);
}

PLANTED shared_is_not_zero(u32* data, u32 n) {
    DYNAMIC_SHARED(shared);
    if (threadIdx.x < n) data[threadIdx.x] = ((u32*)shared)[threadIdx.x];
}
