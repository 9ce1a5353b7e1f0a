// Codes back to values, one thread a value. Table entries are moved as bits, already of the vector's type.
#include "common.cuh"

// `most` becomes the largest code that points beyond its table, if there is one.
template <class Raw>
__device__ __forceinline__ void decode(
    const u8* __restrict__ codes,
    u64 n,
    u64 row,
    const Raw* __restrict__ tables,
    u32 s,
    u32 bits,
    Raw* __restrict__ out,
    u32* most) {
    DYNAMIC_SHARED(shared);
    Raw* near = (Raw*)shared;
    bool one_row = row >= n;
    if (one_row) {
        for (u32 j = threadIdx.x; j < s; j += blockDim.x) near[j] = tables[j];
        __syncthreads();
    }
    u64 stride = (row * bits + 7) / 8, step = (u64)gridDim.x * blockDim.x;
    u32 beyond = 0;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        u64 r = one_row ? 0 : i / row;
        u32 code = code_at(codes, r, i - r * row, stride, bits);
        if (code >= s) {
            beyond = most_of(beyond, code);
            code = s - 1;
        }
        out[i] = one_row ? near[code] : tables[r * s + code];
    }
    if (beyond > 0) atomicMax(most, beyond);
}

#define DECODE_KERNEL(name, Raw)                                                                        \
    extern "C" __global__ void __launch_bounds__(256)                                                   \
        name(const u8* __restrict__ codes, u64 n, u64 row, const Raw* __restrict__ tables, u32 s,       \
             u32 bits, Raw* __restrict__ out, u32* most) {                                              \
        decode<Raw>(codes, n, row, tables, s, bits, out, most);                                         \
    }

DECODE_KERNEL(decode_16, u16)
DECODE_KERNEL(decode_32, u32)
DECODE_KERNEL(decode_64, u64)
