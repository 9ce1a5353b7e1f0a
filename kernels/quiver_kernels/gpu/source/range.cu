// The least and the greatest value, and where the first one lies that is not finite.
#include "common.cuh"

// What the kernel leaves: keys of `KeyOf`, and an index; all ones if every value is finite.
struct Range {
    u64 least;
    u64 most;
    u64 first_bad;
};

// Adds what the threads of a warp have found.
template <class Key>
__device__ __forceinline__ void keep_range(Key least, Key most, u64 first_bad, Range* found) {
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

template <class Value>
__device__ __forceinline__ void find_range(const typename Value::Raw* __restrict__ x, u64 n, Range* found) {
    using Keys = KeyOf<typename Value::Real>;
    using Key = typename Keys::Key;
    Key least = ~(Key)0, most = 0;
    u64 first_bad = ~0ull;
    each_value(x, n, [&](typename Value::Raw raw, u64 i) {
        typename Value::Real value = Value::widen(raw);
        Key key = Keys::of(value);
        least = least_of(least, key);
        most = most_of(most, key);
        if (!Keys::finite(value)) first_bad = least_of(first_bad, i);
    });
    keep_range(least, most, first_bad, found);
}

#define RANGE_KERNEL(name, Value)                                                                               \
    extern "C" __global__ void __launch_bounds__(256) name(const Value::Raw* __restrict__ x, u64 n, Range* found) { \
        find_range<Value>(x, n, found);                                                                         \
    }

RANGE_KERNEL(range_float16, Float16)
RANGE_KERNEL(range_bfloat16, Bfloat16)
RANGE_KERNEL(range_float32, Float32)
RANGE_KERNEL(range_float64, Float64)

// Where one of many vectors begins among the values of all, and how many it has.
struct Span {
    u64 start;
    u64 size;
};

// The ranges of many vectors, one block for each.
template <class Value>
__device__ __forceinline__ void find_ranges(
    const typename Value::Raw* __restrict__ values, const Span* __restrict__ spans, u32 count, Range* found) {
    using Keys = KeyOf<typename Value::Real>;
    using Key = typename Keys::Key;
    for (u32 number = blockIdx.x; number < count; number += gridDim.x) {
        const typename Value::Raw* x = values + spans[number].start;
        u64 n = spans[number].size;
        Key least = ~(Key)0, most = 0;
        u64 first_bad = ~0ull;
        for (u64 i = threadIdx.x; i < n; i += blockDim.x) {
            typename Value::Real value = Value::widen(x[i]);
            Key key = Keys::of(value);
            least = least_of(least, key);
            most = most_of(most, key);
            if (!Keys::finite(value)) first_bad = least_of(first_bad, i);
        }
        keep_range(least, most, first_bad, &found[number]);
    }
}

#define EACH_KERNEL(name, Value)                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                         \
        name(const Value::Raw* __restrict__ values, const Span* __restrict__ spans, u32 count, Range* found) { \
        find_ranges<Value>(values, spans, count, found);                                                      \
    }

EACH_KERNEL(range_each_float16, Float16)
EACH_KERNEL(range_each_bfloat16, Bfloat16)
EACH_KERNEL(range_each_float32, Float32)
EACH_KERNEL(range_each_float64, Float64)
