// The least and the greatest value, and where the first one lies that is not finite.
#include "common.cuh"

// What the kernel leaves: keys of `KeyOf`, and an index; all ones if every value is finite.
struct Range {
    u64 least;
    u64 most;
    u64 first_bad;
};

template <class Value>
__device__ __forceinline__ void find_range(const typename Value::Raw* __restrict__ x, u64 n, Range* found) {
    using Keys = KeyOf<typename Value::Real>;
    using Key = typename Keys::Key;
    Key least = ~(Key)0, most = 0;
    u64 first_bad = ~0ull;
    u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        typename Value::Real value = Value::widen(x[i]);
        Key key = Keys::of(value);
        least = least_of(least, key);
        most = most_of(most, key);
        if (!Keys::finite(value)) first_bad = least_of(first_bad, i);
    }
    for (u32 far = WARP / 2; far > 0; far /= 2) {
        least = least_of(least, __shfl_xor_sync(ALL_LANES, least, far));
        most = most_of(most, __shfl_xor_sync(ALL_LANES, most, far));
        first_bad = least_of(first_bad, __shfl_xor_sync(ALL_LANES, first_bad, far));
    }
    if (threadIdx.x % WARP == 0) {
        atomicMin(&found->least, (u64)least);
        atomicMax(&found->most, (u64)most);
        if (first_bad != ~0ull) atomicMin(&found->first_bad, first_bad);
    }
}

#define RANGE_KERNEL(name, Value)                                                                               \
    extern "C" __global__ void __launch_bounds__(256) name(const Value::Raw* __restrict__ x, u64 n, Range* found) { \
        find_range<Value>(x, n, found);                                                                         \
    }

RANGE_KERNEL(range_float16, Float16)
RANGE_KERNEL(range_bfloat16, Bfloat16)
RANGE_KERNEL(range_float32, Float32)
RANGE_KERNEL(range_float64, Float64)
