// Values as integers that are ordered as they are, -0 before 0, and back. Integers are what is sorted quickly.
//
// With weights the order of equal values counts: they keep theirs, so keys end in the place of the value. Those of
// float64 leave no room for that, and are sorted twice: by their lower halves, then by their upper ones.
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

constexpr u64 LOWER_HALF = 0xffffffffull;

// -0 and 0 are equal.
__device__ __forceinline__ u64 wide_key(double value) { return Key64::of(value == 0 ? 0.0 : value); }

// Key and place of every value of another type than float64.
extern "C" __global__ void __launch_bounds__(256) order_pairs(
    const void* __restrict__ x, u32 type, u64 n, u64* __restrict__ keys) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        float value = narrow_at(x, type, i);
        keys[i] = (u64)Key32::of(value == 0 ? 0.0f : value) << 32 | i;
    }
}

// Lower half of the key, and place, of every float64 value.
extern "C" __global__ void __launch_bounds__(256) order_lower(const double* __restrict__ x, u64 n, u64* __restrict__ keys) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) keys[i] = wide_key(x[i]) << 32 | i;
}

// Upper half of the key of every value, and its place among the sorted keys of lower halves.
extern "C" __global__ void __launch_bounds__(256) order_upper(
    const double* __restrict__ x, u64 n, const u64* __restrict__ lower, u64* __restrict__ keys) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 j = (u64)blockIdx.x * blockDim.x + threadIdx.x; j < n; j += step) {
        keys[j] = (wide_key(x[lower[j] & LOWER_HALF]) & ~LOWER_HALF) | j;
    }
}

// Values and their weights in the order of sorted keys, whose lower halves are the values' places; or, if there are
// `lower` ones, places among these.
extern "C" __global__ void __launch_bounds__(256) order_take(
    const void* __restrict__ x, u32 type, const double* __restrict__ weights, const u64* __restrict__ keys,
    const u64* __restrict__ lower, u64 n, void* __restrict__ out, double* __restrict__ out_weights) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 j = (u64)blockIdx.x * blockDim.x + threadIdx.x; j < n; j += step) {
        u64 i = keys[j] & LOWER_HALF;
        if (lower != nullptr) i = lower[i] & LOWER_HALF;
        if (type == FLOAT64) ((u64*)out)[j] = ((const u64*)x)[i];
        else if (type == FLOAT32) ((u32*)out)[j] = ((const u32*)x)[i];
        else ((u16*)out)[j] = ((const u16*)x)[i];
        out_weights[j] = weights[i];
    }
}
