// Codes back to values, 16 bytes of them a thread. Table entries are moved as bits, already of the vector's type.
#include "common.cuh"

// The `bits * many` bits, at most 64, of the codes from `place` of row r on; codes of a row begin on a byte.
__device__ __forceinline__ u64 codes_at(
    const u8* __restrict__ codes, u64 r, u64 place, u64 stride, u32 bits, u32 many) {
    u64 bit = place * bits, word = 0;
    const u8* at = codes + r * stride + bit / 8;
    u32 shift = (u32)(bit % 8), bytes = (shift + bits * many + 7) / 8;
    for (u32 j = 0; j < bytes; j++) word |= (u64)at[j] << (8 * j);
    return word >> shift;
}

template <class Raw>
__device__ __forceinline__ void put_raw(Sixteen& bytes, u32 j, Raw raw) {
    if constexpr (sizeof(Raw) == 2) bytes.words[j / 2] |= (u32)raw << 16 * (j % 2);
    if constexpr (sizeof(Raw) == 4) bytes.words[j] = raw;
    if constexpr (sizeof(Raw) == 8) bytes.words[2 * j] = (u32)raw, bytes.words[2 * j + 1] = (u32)(raw >> 32);
}

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
    constexpr u32 MANY = 16 / sizeof(Raw);
    u64 stride = (row * bits + 7) / 8, step = (u64)gridDim.x * blockDim.x;
    u64 thread = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    u32 beyond = 0, ones = (1u << bits) - 1;
    auto value_of = [&](u64 r, u32 code) {
        if (code >= s) {
            beyond = most_of(beyond, code);
            code = s - 1;
        }
        return one_row ? near[code] : tables[r * s + code];
    };
    auto decode_one = [&](u64 i) {
        u64 r = one_row ? 0 : i / row;
        out[i] = value_of(r, code_at(codes, r, i - r * row, stride, bits));
    };
    u64 head = least_of(n, (16 - (u64)out % 16) % 16 / (u64)sizeof(Raw)), packs = (n - head) / MANY;
    Sixteen* packed = (Sixteen*)(out + head);
    for (u64 pack = thread; pack < packs; pack += step) {
        u64 i = head + pack * MANY, r = one_row ? 0 : i / row, place = i - r * row;
        if (!one_row && place + MANY > row) {
#pragma unroll 1
            for (u32 j = 0; j < MANY; j++) decode_one(i + j);
            continue;
        }
        u64 word = codes_at(codes, r, place, stride, bits, MANY);
        Sixteen bytes = {};
#pragma unroll
        for (u32 j = 0; j < MANY; j++) put_raw(bytes, j, value_of(r, (u32)(word >> bits * j) & ones));
        packed[pack] = bytes;
    }
    u64 rest = n - packs * MANY;
#pragma unroll 1
    for (u64 i = thread; i < rest; i += step) decode_one(i < head ? i : i + packs * MANY);
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
