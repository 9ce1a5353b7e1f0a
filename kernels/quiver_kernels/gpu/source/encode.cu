// Unbiased codes, packed; and the expected error of the rounding. The rule is `quiver_kernels.rounding`'s.
//
// A "row" is what shares one level table. Eight values of a row are a group, and its codes `bits` bytes.
#include "common.cuh"

constexpr u32 THREADS = 256;
constexpr float BELOW_ONE = 1.0f - 0x1p-24f;
constexpr u32 STRATA_STREAM = 2;

// Level tables, one row after the other: s levels, s - 1 reciprocals of gaps, s - 1 scales (wide tables only).
template <class T>
struct Tables {
    const T* levels;
    const T* inverse;
    const double* scale;
};

// A worker's place among those that round together (`quiver_kernels.strata`); no units: it rounds alone.
struct Strata {
    u64 shared_seed;
    const u32* shifts;
    u32 units;
    u32 world_size;
};

// floor((stratum 2^32 + word) / n) for n <= 2^16: two digits of 16 bits, so that 32-bit divisions do.
__device__ __forceinline__ u32 stratified(u32 word, u32 drawn, const Strata& strata) {
    u32 n = strata.world_size;
    u64 scaled = (u64)drawn * strata.units;
    u32 stratum = strata.shifts[scaled >> 32] + (u32)(((scaled & 0xffffffffu) * n) >> 32);
    if (stratum >= n) stratum -= n;
    u32 high = stratum << 16 | word >> 16;
    u32 low = high % n << 16 | (word & 0xffffu);
    return high / n << 16 | low / n;
}

// Whether x in the interval k goes up: narrow tables in float32, wide ones in float64.
__device__ __forceinline__ bool goes_up(float x, u32 k, u32 s, const Tables<float>& table, u32 word) {
    float p = (x - table.levels[k]) * table.inverse[k];
    u32 threshold = (u32)(least_of(p, BELOW_ONE) * 4294967296.0f);
    return word < threshold || p >= 1.0f || x >= table.levels[s - 1];
}

__device__ __forceinline__ bool goes_up(double x, u32 k, u32 s, const Tables<double>& table, u32 word) {
    double scale = table.scale[k];
    double p = (x * scale - table.levels[k] * scale) * table.inverse[k];
    // word < floor(t) for a whole word is word + 1 <= t, and word + 1 is exact in float64.
    return (double)word + 1.0 <= p * 4294967296.0 || x >= table.levels[s - 1];
}

// The codes of the elements from `first` to `stop`, at most eight, the first in the low bits.
template <class Value, class T, class Index>
__device__ __forceinline__ u64 codes_of(
    const typename Value::Raw* __restrict__ x,
    Index first,
    Index stop,
    const Tables<T>& table,
    u32 s,
    u32 bits,
    u64 seed,
    const Strata& strata) {
    u32 first_step = first_step_of(s);
    u64 packed = 0;
    // Words come in fours, and a row may begin anywhere among them.
    for (Index four = first / 4; 4 * four < stop; four++) {
        u32 words[4];
        philox(seed, 0, four, words);
        if (strata.units > 0) {
            u32 drawn[4];
            philox(strata.shared_seed, STRATA_STREAM, four, drawn);
#pragma unroll
            for (u32 j = 0; j < 4; j++) words[j] = stratified(words[j], drawn[j], strata);
        }
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            Index i = 4 * four + j;
            if (i < first || i >= stop) continue;
            T value = (T)Value::widen(x[i]);
            u32 k = interval_of(value, table.levels, s, first_step);
            u64 code = k + (goes_up(value, k, s, table, words[j]) ? 1 : 0);
            packed |= code << (bits * (u32)(i - first));
        }
    }
    return packed;
}

// What the codes of a vector depend on besides its values: how many these are and how many share a table, the table
// of the first, bits, seeds; groups of all rows.
template <class T, class Index>
struct Coding {
    Index n;
    Index row;
    Tables<T> tables;
    u32 s;
    u32 bits;
    u64 seed;
    Strata strata;
    Index groups;
};

// The codes of THREADS groups; `staged` is shared memory, which all threads have left when this returns.
template <class Value, class T, class Index>
__device__ __forceinline__ void encode_tile(
    const typename Value::Raw* __restrict__ x, const Coding<T, Index>& coding, Index tile, u8* staged,
    u8* __restrict__ codes) {
    constexpr bool wide = sizeof(T) == 8;
    Index n = coding.n, row = coding.row;
    u32 s = coding.s, bits = coding.bits;
    bool one_row = row >= n;
    Index per_row = (row + 7) / 8, stride = (row * bits + 7) / 8;
    // Groups of whole bytes lie one after the other, so a block writes its part in words.
    bool gapless = one_row || row % 8 == 0;
    Index group = tile * THREADS + threadIdx.x;
    if (group < coding.groups) {
        Index r = one_row ? 0 : group / per_row;
        Index first = r * row + 8 * (group - r * per_row);
        Index stop = least_of(least_of(first + 8, (r + 1) * row), n);
        Tables<T> table = coding.tables;
        if (!one_row) {
            table = {table.levels + r * s, table.inverse + r * (s - 1), wide ? table.scale + r * (s - 1) : table.scale};
        }
        u64 packed = codes_of<Value>(x, first, stop, table, s, bits, coding.seed, coding.strata);
        u8* out = gapless ? staged + threadIdx.x * bits : codes + r * stride + (group - r * per_row) * bits;
        u32 used = ((u32)(stop - first) * bits + 7) / 8;
        for (u32 j = 0; j < used; j++) out[j] = (u8)(packed >> (8 * j));
    }
    if (!gapless) return;
    __syncthreads();
    Index begin = tile * THREADS * bits;
    u32 size = (u32)least_of((Index)(THREADS * bits), (n * bits + 7) / 8 - begin);
    for (u32 j = threadIdx.x; j < size / 4; j += THREADS) ((u32*)(codes + begin))[j] = ((const u32*)staged)[j];
    for (u32 j = size / 4 * 4 + threadIdx.x; j < size; j += THREADS) codes[begin + j] = staged[j];
    __syncthreads();
}

// Tables of one row in shared memory, behind what is staged; a barrier must follow.
template <class T>
__device__ __forceinline__ Tables<T> near_tables(const Tables<T>& table, u32 s, u8* shared) {
    constexpr bool wide = sizeof(T) == 8;
    T* near_levels = (T*)(shared + 8 * THREADS);
    T* near_inverse = near_levels + s;
    double* near_scale = (double*)(near_inverse + s);
    for (u32 j = threadIdx.x; j < s; j += THREADS) {
        near_levels[j] = table.levels[j];
        if (j + 1 < s) near_inverse[j] = table.inverse[j];
        if (wide && j + 1 < s) near_scale[j] = table.scale[j];
    }
    return {near_levels, near_inverse, near_scale};
}

template <class Value, class T>
__device__ __forceinline__ void encode(
    const typename Value::Raw* __restrict__ x,
    u64 n,
    u64 row,
    const T* __restrict__ levels,
    const T* __restrict__ inverse,
    const double* __restrict__ scale,
    u32 s,
    u32 bits,
    u64 seed,
    u64 shared_seed,
    const u32* __restrict__ shifts,
    u32 units,
    u32 world_size,
    u64 groups,
    u8* __restrict__ codes) {
    DYNAMIC_SHARED(shared);
    Strata strata = {shared_seed, shifts, units, world_size};
    Coding<T, u64> coding = {n, row, {levels, inverse, scale}, s, bits, seed, strata, groups};
    if (row >= n) {
        coding.tables = near_tables(coding.tables, s, shared);
        __syncthreads();
    }
    u64 tiles = (groups + THREADS - 1) / THREADS;
    for (u64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        encode_tile<Value>(x, coding, tile, shared, codes);
    }
}

#define ENCODE_KERNEL(name, Value, T)                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                           \
        name(const Value::Raw* __restrict__ x, u64 n, u64 row, const T* __restrict__ levels,                        \
             const T* __restrict__ inverse, const double* __restrict__ scale, u32 s, u32 bits, u64 seed,            \
             u64 shared_seed, const u32* __restrict__ shifts, u32 units, u32 world_size, u64 groups,                \
             u8* __restrict__ codes) {                                                                              \
        encode<Value, T>(x, n, row, levels, inverse, scale, s, bits, seed, shared_seed, shifts, units, world_size,  \
                         groups, codes);                                                                            \
    }

ENCODE_KERNEL(encode_float16, Float16, float)
ENCODE_KERNEL(encode_bfloat16, Bfloat16, float)
ENCODE_KERNEL(encode_float32, Float32, float)
ENCODE_KERNEL(encode_float64, Float64, double)

// Tiles of many vectors, numbered through. Their codes begin at multiples of 4 bytes.
template <class Value, class T>
__device__ __forceinline__ void encode_each(
    const typename Value::Raw* __restrict__ values,
    const Job* __restrict__ jobs,
    u32 count,
    u64 tiles,
    const T* __restrict__ levels,
    const T* __restrict__ inverse,
    const double* __restrict__ scale,
    const u32* __restrict__ shifts,
    u8* __restrict__ codes) {
    DYNAMIC_SHARED(shared);
    constexpr bool wide = sizeof(T) == 8;
    for (u64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const Job& job = job_of<&Job::first_tile>(jobs, count, tile);
        u32 n = (u32)job.size, row = (u32)job.row, s = (u32)job.s, bits = (u32)job.bits;
        Tables<T> tables = {levels + job.levels, inverse + job.inverse, wide ? scale + job.inverse : scale};
        if (row >= n) {
            tables = near_tables(tables, s, shared);
            __syncthreads();
        }
        u32 groups = n / row * ((row + 7) / 8) + (n % row + 7) / 8;
        Strata strata = {job.shared_seed, shifts + job.shifts, (u32)job.units, (u32)job.world_size};
        Coding<T, u32> coding = {n, row, tables, s, bits, job.seed, strata, groups};
        encode_tile<Value>(values + job.start, coding, (u32)(tile - job.first_tile), shared, codes + job.codes);
    }
}

#define EACH_KERNEL(name, Value, T)                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                                        \
        name(const Value::Raw* __restrict__ values, const Job* __restrict__ jobs, u32 count, u64 tiles,             \
             const T* __restrict__ levels, const T* __restrict__ inverse, const double* __restrict__ scale,         \
             const u32* __restrict__ shifts, u8* __restrict__ codes) {                                              \
        encode_each<Value, T>(values, jobs, count, tiles, levels, inverse, scale, shifts, codes);                   \
    }

EACH_KERNEL(encode_each_float16, Float16, float)
EACH_KERNEL(encode_each_bfloat16, Bfloat16, float)
EACH_KERNEL(encode_each_float32, Float32, float)
EACH_KERNEL(encode_each_float64, Float64, double)
