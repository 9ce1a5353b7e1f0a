// Values as float64, for level tables that float32 arithmetic does not suit.
#include "common.cuh"

template <class Value>
__device__ __forceinline__ void widen(const typename Value::Raw* __restrict__ x, u64 n, double* __restrict__ out) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) out[i] = (double)Value::widen(x[i]);
}

#define WIDEN_KERNEL(name, Value)                                                               \
    extern "C" __global__ void __launch_bounds__(256)                                           \
        name(const Value::Raw* __restrict__ x, u64 n, double* __restrict__ out) {               \
        widen<Value>(x, n, out);                                                                \
    }

WIDEN_KERNEL(widen_float16, Float16)
WIDEN_KERNEL(widen_bfloat16, Bfloat16)
WIDEN_KERNEL(widen_float32, Float32)
