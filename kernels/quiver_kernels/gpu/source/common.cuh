// What all kernels share: number types, values of the four types as they lie in memory, Philox.
//
// NVRTC compiles this without any header. The arithmetic is the CPU kernels', operation by operation: the flags
// forbid fused multiply-adds and keep subnormal numbers (`quiver_kernels.gpu.compiling`). Dynamic shared memory is
// the only shared memory, through DYNAMIC_SHARED, so that the CPU shim of the tests can watch it.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) u8 name[]
#endif

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

template <class T>
__device__ __forceinline__ T least_of(T a, T b) {
    return b < a ? b : a;
}

template <class T>
__device__ __forceinline__ T most_of(T a, T b) {
    return a < b ? b : a;
}

// The values of a type: `Raw` is how they lie in memory, `Real` what they are widened to, exactly.

struct Float32 {
    using Raw = u32;
    using Real = float;
    static __device__ __forceinline__ float widen(u32 raw) { return __uint_as_float(raw); }
};

struct Float64 {
    using Raw = u64;
    using Real = double;
    static __device__ __forceinline__ double widen(u64 raw) { return __longlong_as_double((long long)raw); }
};

struct Bfloat16 {
    using Raw = u16;
    using Real = float;
    static __device__ __forceinline__ float widen(u16 raw) { return __uint_as_float((u32)raw << 16); }
};

struct Float16 {
    using Raw = u16;
    using Real = float;
    static __device__ __forceinline__ float widen(u16 raw) {
        u32 sign = (u32)(raw & 0x8000u) << 16;
        u32 magnitude = (u32)(raw & 0x7fffu) << 13;
        if (magnitude >= 0x0f800000u) return __uint_as_float(sign | magnitude | 0x7f800000u);
        // The exponents' biases differ by 112; subnormal numbers become normal ones by the same product.
        return __uint_as_float(sign | __float_as_uint(__uint_as_float(magnitude) * 0x1p112f));
    }
};

// Integers that are ordered as the values are, -0 before 0; and whether a value is finite.

struct Key32 {
    using Key = u32;
    static __device__ __forceinline__ u32 of(float value) {
        u32 raw = __float_as_uint(value);
        return raw >> 31 ? ~raw : raw | 0x80000000u;
    }
    static __device__ __forceinline__ bool finite(float value) {
        return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
    }
};

struct Key64 {
    using Key = u64;
    static __device__ __forceinline__ u64 of(double value) {
        u64 raw = (u64)__double_as_longlong(value);
        return raw >> 63 ? ~raw : raw | 0x8000000000000000ull;
    }
    static __device__ __forceinline__ bool finite(double value) {
        return ((u64)__double_as_longlong(value) & 0x7ff0000000000000ull) != 0x7ff0000000000000ull;
    }
};

template <class Real>
struct KeyOf;
template <>
struct KeyOf<float> : Key32 {};
template <>
struct KeyOf<double> : Key64 {};

// Philox4x32-10: the words of elements 4 * group .. 4 * group + 3. See `quiver_kernels.rng`.
__device__ __forceinline__ void philox(u64 seed, u32 stream, u64 group, u32 (&words)[4]) {
    u32 c0 = (u32)group, c1 = (u32)(group >> 32), c2 = stream, c3 = 0;
    u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u64 p0 = (u64)0xD2511F53u * c0, p1 = (u64)0xCD9E8D57u * c2;
        u32 n0 = (u32)(p1 >> 32) ^ c1 ^ k0, n2 = (u32)(p0 >> 32) ^ c3 ^ k1;
        c0 = n0, c1 = (u32)p1, c2 = n2, c3 = (u32)p0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

// The interval of x: the greatest k up to s - 2 with levels[k] <= x, 0 if there is none. `first_step` is the
// greatest power of two up to s - 2, or 0.
template <class T>
__device__ __forceinline__ u32 interval_of(T x, const T* levels, u32 s, u32 first_step) {
    u32 k = 0;
    for (u32 step = first_step; step > 0; step >>= 1) {
        u32 next = k + step;
        if (next < s - 1 && x >= levels[next]) k = next;
    }
    return k;
}

__device__ __forceinline__ u32 first_step_of(u32 s) { return s > 2 ? 1u << (31 - __clz((int)(s - 2))) : 0; }

// The code of the element at `place` of row r; codes of a row begin on a byte.
__device__ __forceinline__ u32 code_at(const u8* __restrict__ codes, u64 r, u64 place, u64 stride, u32 bits) {
    u64 bit = place * bits;
    const u8* at = codes + r * stride + bit / 8;
    u32 shift = (u32)(bit % 8), word = at[0];
    if (shift + bits > 8) word |= (u32)at[1] << 8;
    return word >> shift & ((1u << bits) - 1);
}
