// Values as integers that are ordered as they are, -0 before 0, and back. Integers are what is sorted quickly.
#include "common.cuh"

template <class Raw>
__device__ __forceinline__ void to_order(const Raw* __restrict__ x, u64 n, Raw* __restrict__ keys) {
    constexpr Raw sign = (Raw)1 << (8 * sizeof(Raw) - 1);
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        Raw raw = x[i];
        keys[i] = (Raw)(raw & sign ? ~raw : raw | sign);
    }
}

template <class Raw>
__device__ __forceinline__ void from_order(Raw* keys, u64 n) {
    constexpr Raw sign = (Raw)1 << (8 * sizeof(Raw) - 1);
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        Raw key = keys[i];
        keys[i] = (Raw)(key & sign ? key ^ sign : ~key);
    }
}

#define TO_KERNEL(name, Raw)                              \
    extern "C" __global__ void __launch_bounds__(256)     \
        name(const Raw* __restrict__ x, u64 n, Raw* __restrict__ keys) { to_order<Raw>(x, n, keys); }

#define FROM_KERNEL(name, Raw) \
    extern "C" __global__ void __launch_bounds__(256) name(Raw* keys, u64 n) { from_order<Raw>(keys, n); }

TO_KERNEL(order_to_16, u16)
TO_KERNEL(order_to_32, u32)
TO_KERNEL(order_to_64, u64)
FROM_KERNEL(order_from_16, u16)
FROM_KERNEL(order_from_32, u32)
FROM_KERNEL(order_from_64, u64)
