// Sums of weights by cell, by piece of a cell, or by grid point, in the order of the values: float64 sums, so their
// order decides the bits, and the CPU's is this one.
//
// A slice of the vector is brought into the order of rows and places by sorting keys (common.cuh). Then a warp goes
// through the values of a row: its lanes read them, and one lane for each sum adds them up, one after the other.
// Slices come one after the other, and go on from the sums so far.
#include "common.cuh"

constexpr u32 THREADS = 256;

// A row: its cell, and the sums of the weights and of weight times offset.
struct Weighed {
    Cell cell;
    double weight;
    double moment;
};

// Calls work(place, row) for the first key of every row; all lanes of a warp take part.
template <class Work>
__device__ __forceinline__ void each_row(const u64* __restrict__ keys, u64 size, const Work& work) {
    u32 lane = threadIdx.x % WARP;
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 start = (u64)blockIdx.x * blockDim.x + threadIdx.x - lane; start < size; start += step) {
        u64 at = start + lane, key = at < size ? keys[at] : OF_NO_ROW;
        bool first = key != OF_NO_ROW && (at == 0 || keys[at - 1] >> PLACE_BITS != key >> PLACE_BITS);
        for (u32 left = __ballot_sync(ALL_LANES, first); left != 0; left &= left - 1) {
            u64 place = start + 31 - __clz((int)(left & (~left + 1)));
            work(place, keys[place] >> PLACE_BITS);
        }
    }
}

// How many of the keys from `at` on are of a row, at most one for each lane.
__device__ __forceinline__ u32 keys_of(const u64* __restrict__ keys, u64 size, u64 at, u64 row) {
    u64 mine = at + threadIdx.x % WARP;
    return (u32)__popc(__ballot_sync(ALL_LANES, mine < size && keys[mine] >> PLACE_BITS == row));
}

extern "C" __global__ void __launch_bounds__(THREADS) weigh_clear(Weighed* rows, u64 size) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += step)
        rows[i] = {{0, 0, 0, ~0ull, 0}, 0.0, 0.0};
}

// Keys of the cells that values lie in, counted from `base`, if they weigh something.
extern "C" __global__ void __launch_bounds__(THREADS) weigh_cells(
    const void* __restrict__ x, u32 type, const double* __restrict__ weights, u64 n, double scale, long long top,
    long long base, u64* __restrict__ keys) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        u64 row = (u64)(place_at(x, type, i, scale, top).cell - base);
        keys[i] = weights[i] > 0 ? key_in_row(row, i) : OF_NO_ROW;
    }
}

// Adds the values of a slice to their rows. Values whose places agree but for their last `chunk_bits` bits are one
// chunk; its sum is closed before it is added, unless the slice is one chunk: then its values are added one by one.
extern "C" __global__ void __launch_bounds__(THREADS) weigh_rows(
    const void* __restrict__ x, u32 type, const double* __restrict__ weights, const u64* __restrict__ keys, u64 size,
    double scale, long long top, u32 chunk_bits, Weighed* __restrict__ rows) {
    DYNAMIC_SHARED(shared);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    double* terms = (double*)shared + 2 * WARP * warp;
    u32* chunks = (u32*)((double*)shared + 2 * THREADS) + WARP * warp;
    bool closing = chunk_bits < PLACE_BITS;
    each_row(keys, size, [&](u64 begin, u64 row) {
        Weighed* found = rows + row;
        double sum = lane == 0 ? found->weight : found->moment, closed = 0.0;
        if (closing) closed = sum, sum = 0.0;
        u32 chunk = (u32)(keys[begin] & PLACES) >> chunk_bits, held = WARP;
        u64 at = begin, low = 0, high = 0, nearest = ~0ull, farthest = 0;
        for (; held == WARP; at += held) {
            held = keys_of(keys, size, at, row);
            if (lane < held) {
                u64 i = keys[at + lane] & PLACES, offset = place_at(x, type, i, scale, top).offset;
                low += offset & 0xffffffffull;
                high += offset >> 32;
                nearest = least_of(nearest, offset);
                farthest = most_of(farthest, offset);
                terms[lane] = weights[i];
                terms[WARP + lane] = weights[i] * (double)offset;
                chunks[lane] = (u32)i >> chunk_bits;
            }
            __syncwarp();
            if (lane < 2) {
                for (u32 k = 0; k < held; k++) {
                    if (chunks[k] != chunk) closed += sum, sum = 0.0, chunk = chunks[k];
                    sum += terms[WARP * lane + k];
                }
            }
            __syncwarp();
        }
        for (u32 far = WARP / 2; far > 0; far /= 2) {
            low += __shfl_xor_sync(ALL_LANES, low, far);
            high += __shfl_xor_sync(ALL_LANES, high, far);
            nearest = least_of(nearest, __shfl_xor_sync(ALL_LANES, nearest, far));
            farthest = most_of(farthest, __shfl_xor_sync(ALL_LANES, farthest, far));
        }
        if (lane == 1) found->moment = closed + sum;
        if (lane > 0) return;
        found->weight = closed + sum;
        found->cell.number += at - begin;
        found->cell.low += low;
        found->cell.high += high;
        found->cell.nearest = least_of(found->cell.nearest, nearest);
        found->cell.farthest = most_of(found->cell.farthest, farthest);
    });
}

// -- grid ------------------------------------------------------------------------------------------------------

// Adding and taking away this number rounds to whole shares (`quiver_kernels.cpu.approx`).
constexpr double ROUNDS_SHARES = 1.5 * 0x1p32;

// A value between two points of a grid: the lower one's number, and what share of the value the upper one has.
struct Between {
    u32 point;
    double share;
};

// `unit` brings values near 1, `base` is the least of them then, `per_cell` the cells in 1.
__device__ __forceinline__ Between between(double value, double unit, double base, double per_cell, u32 points) {
    double place = (value * unit - base) * per_cell;
    u32 point = least_of((u32)place, points - 2);
    return {point, (least_of(place - (double)point, 1.0) + ROUNDS_SHARES) - ROUNDS_SHARES};
}

// Two keys for every value: of the point below, and of the point above, which has the last bit of the place.
extern "C" __global__ void __launch_bounds__(THREADS) weigh_shares(
    const void* __restrict__ x, u32 type, u64 n, double unit, double base, double per_cell, u32 points,
    u64* __restrict__ keys) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        u32 point = between(value_at(x, type, i), unit, base, per_cell, points).point;
        keys[2 * i] = key_in_row(point, 2 * i);
        keys[2 * i + 1] = key_in_row(point + 1, 2 * i + 1);
    }
}

// Adds the shares of a slice to their points.
extern "C" __global__ void __launch_bounds__(THREADS) weigh_points(
    const void* __restrict__ x, u32 type, const double* __restrict__ weights, const u64* __restrict__ keys, u64 size,
    double unit, double base, double per_cell, u32 points, double* __restrict__ sums) {
    DYNAMIC_SHARED(shared);
    u32 lane = threadIdx.x % WARP;
    double* terms = (double*)shared + threadIdx.x - lane;
    each_row(keys, size, [&](u64 at, u64 point) {
        double sum = sums[point];
        for (u32 held = WARP; held == WARP; at += held) {
            held = keys_of(keys, size, at, point);
            if (lane < held) {
                u64 place = keys[at + lane] & PLACES, i = place / 2;
                double share = between(value_at(x, type, i), unit, base, per_cell, points).share;
                double upper = weights[i] * share;
                terms[lane] = place % 2 ? upper : weights[i] - upper;
            }
            __syncwarp();
            if (lane == 0)
                for (u32 k = 0; k < held; k++) sum += terms[k];
            __syncwarp();
        }
        if (lane == 0) sums[point] = sum;
    });
}
