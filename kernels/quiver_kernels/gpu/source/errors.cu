// Expected squared error and squared norm, in the very order in which the CPU adds them up.
//
// A row is cut into pieces of CHUNK values. Lane i of a piece adds up every TILE-th value from the i-th on; the
// lanes' sums are then added in halves. The host adds the pieces' sums exactly.
#include "common.cuh"

constexpr u32 TILE = 512;
constexpr u64 CHUNK = 1 << 18;
// Values of its lane that a thread loads before it needs them.
constexpr u32 AHEAD = 4;
// Tables of codes have no more levels, and find room in shared memory; a caller's own may have any number.
constexpr u32 MOST_NEAR = 256;

__device__ __forceinline__ void add_error(float x, float below, float above, double, double& error, double& norm) {
    double v = x;
    error += ((double)above - v) * (v - (double)below);
    norm += v * v;
}

__device__ __forceinline__ void add_error(
    double x, double below, double above, double unit, double& error, double& norm) {
    double v = x * unit;
    error += (above * unit - v) * (v - below * unit);
    norm += v * v;
}

// The sums of piece number `piece` of a vector, whose first table is `levels`.
template <class Value, class T>
__device__ __forceinline__ void sum_errors(
    const typename Value::Raw* __restrict__ x,
    u64 n,
    u64 row,
    const T* __restrict__ levels,
    u32 s,
    double unit,
    u64 piece,
    double* __restrict__ sums) {
    DYNAMIC_SHARED(shared);
    double* errors = (double*)shared;
    double* norms = errors + TILE;
    T* near = (T*)(norms + TILE);
    u32 first_step = first_step_of(s);
    u64 per_row = (row + CHUNK - 1) / CHUNK;
    u64 r = piece / per_row;
    u64 start = r * row + piece % per_row * CHUNK;
    u64 stop = least_of(least_of(start + CHUNK, (r + 1) * row), n);
    u32 lanes = (u32)least_of((u64)TILE, stop - start);
    bool is_near = s <= MOST_NEAR;
    const T* table = is_near ? near : levels + r * s;
    for (u32 j = threadIdx.x; is_near && j < s; j += blockDim.x) near[j] = levels[r * s + j];
    __syncthreads();

    // Blocks may have fewer threads than a tile has lanes.
    for (u32 lane = threadIdx.x; lane < lanes; lane += blockDim.x) {
        double error = 0.0, norm = 0.0;
        for (u64 first = start + lane; first < stop; first += AHEAD * TILE) {
            typename Value::Raw held[AHEAD];
#pragma unroll
            for (u32 j = 0; j < AHEAD; j++) held[j] = x[least_of(first + j * TILE, stop - 1)];
#pragma unroll
            for (u32 j = 0; j < AHEAD; j++) {
                if (first + j * TILE >= stop) break;
                T value = (T)Value::widen(held[j]);
                u32 k = interval_of(value, table, s, first_step);
                add_error(value, table[k], table[k + 1], unit, error, norm);
            }
        }
        errors[lane] = error;
        norms[lane] = norm;
    }
    __syncthreads();
    for (u32 used = lanes; used > 1; used = (used + 1) / 2) {
        u32 half = (used + 1) / 2;
        for (u32 lane = threadIdx.x; lane < used - half; lane += blockDim.x) {
            errors[lane] += errors[half + lane];
            norms[lane] += norms[half + lane];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        // Squares of float32 fit into float64 as they are.
        double once = sizeof(T) == 4 ? unit : 1.0;
        sums[0] = errors[0] * once * once;
        sums[1] = norms[0] * once * once;
    }
}

#define ERRORS_KERNEL(name, Value, T)                                                               \
    extern "C" __global__ void __launch_bounds__(TILE, 2)                                           \
        name(const Value::Raw* __restrict__ x, u64 n, u64 row, const T* __restrict__ levels, u32 s, \
             double unit, double* __restrict__ sums) {                                              \
        sum_errors<Value, T>(x, n, row, levels, s, unit, blockIdx.x, sums + 2 * (u64)blockIdx.x);    \
    }

ERRORS_KERNEL(errors_float16, Float16, float)
ERRORS_KERNEL(errors_bfloat16, Bfloat16, float)
ERRORS_KERNEL(errors_float32, Float32, float)
ERRORS_KERNEL(errors_float64, Float64, double)

// The pieces of many vectors.
#define EACH_KERNEL(name, Value, T)                                                                             \
    extern "C" __global__ void __launch_bounds__(TILE, 2)                                                        \
        name(const Value::Raw* __restrict__ values, const Job* __restrict__ jobs, u32 count,                     \
             const T* __restrict__ levels, double* __restrict__ sums) {                                          \
        const Job& job = job_of<&Job::first_piece>(jobs, count, blockIdx.x);                                     \
        sum_errors<Value, T>(values + job.start, job.size, job.row, levels + job.levels, (u32)job.s, job.unit,   \
                             blockIdx.x - job.first_piece, sums + 2 * (u64)blockIdx.x);                          \
    }

EACH_KERNEL(errors_each_float16, Float16, float)
EACH_KERNEL(errors_each_bfloat16, Bfloat16, float)
EACH_KERNEL(errors_each_float32, Float32, float)
EACH_KERNEL(errors_each_float64, Float64, double)
