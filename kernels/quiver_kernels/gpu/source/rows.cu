// Level tables of many short rows, one block a row: what `cpu.solving` finds for them, bit for bit.
//
// Values that are few are their own levels. Levels on a grid and those of sorted values come from the dynamic
// programme of `cpu/path.py` over the curve of `cpu/area.py`: sums whose order matters are made by one thread each. So
// are the sums of weights, if there are any: one thread for each grid point, or for all distinct values.
//
// Loops are unrolled where a sum would wait for its numbers; elsewhere it is code that takes the compiler seconds.
#include "common.cuh"

constexpr u32 THREADS = 128;
constexpr u64 EMPTY = ~0ull;
constexpr u32 SLOTS = 1024;
constexpr u32 MOST_LEVELS = 256;
// Adding and taking away this number rounds shares of grid points to multiples of 2^-20 (`cpu/approx.py`).
constexpr double ROUNDS_SHARES = 1.5 * 0x1p32;
constexpr u32 WHOLE_SHARE = 1u << 20;

enum Mode : u64 { EVEN, GRID, SORTED };

// The values of a row, and their weights: null for ones.
struct Row {
    const void* values;
    u32 type;
    u64 start;
    u32 n;
    const double* weights;

    __device__ __forceinline__ double operator[](u32 i) const { return value_at(values, type, start + i); }
};

// What a value adds to the grid points around it.
struct Split {
    double lower;
    double upper;
    u32 point;
};

// A vector whose rows are solved: where it begins, its values, those of a row; the number of its first row among
// all; where its levels go; levels of a row, points of the grid.
struct Task {
    u64 start;
    u64 size;
    u64 row;
    u64 first;
    u64 out;
    u64 s;
    u64 points;
    u64 mode;
};

// What the threads of a block tell each other of their row.
struct Found {
    u64 least;
    u64 most;
    double unit;
    double origin;
    double stretch;
    u32 distinct;
    u32 count;
    u32 anchor;
    u32 end;
    u16 path[MOST_LEVELS];
};

__device__ __forceinline__ double value_of(u64 key) {
    return __longlong_as_double((long long)(key >> 63 ? key ^ 0x8000000000000000ull : ~key));
}

// -0 has the key of 0: the values are equal.
__device__ __forceinline__ u64 key_of(double value) { return Key64::of(value == 0 ? 0.0 : value); }

// The floor of the logarithm to base 2; -1023 for all subnormal numbers.
__device__ __forceinline__ int exponent_of(double top) {
    return (int)((u64)__double_as_longlong(top) >> 52 & 0x7ff) - 1023;
}

// 2^exponent for -1023 .. 1023.
__device__ __forceinline__ double power_of_two(int exponent) {
    return __longlong_as_double(exponent < -1022 ? 1ll << 51 : (long long)(exponent + 1023) << 52);
}

__device__ __forceinline__ double magnitude(double value) { return value < 0 ? -value : value; }

// What brings `top` > 0 into [1/4, 1).
__device__ __forceinline__ double into_unit(double top) {
    return power_of_two(least_of(most_of(-exponent_of(top) - 2, -1023), 1000));
}

// Adds to a number of 64 bits that lies in two halves; shared memory has no atomic sums of 64 bits.
__device__ __forceinline__ void add_to_halves(u32* low, u32* high, u32 value) {
    u32 old = atomicAdd(low, value);
    if (old + value < old) atomicAdd(high, 1u);
}

// -- values --------------------------------------------------------------------------------------------------

// The ends of a row, and its distinct values, as keys in a hash table; it is given up beyond s of them.
__device__ __forceinline__ void look_at_values(const Row& x, u32 s, Found* found, u64* slots) {
    u64 least = ~0ull, most = 0;
    volatile u32* distinct = &found->distinct;
    u64 previous = EMPTY;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < x.n; i += THREADS) {
        u64 key = key_of(x[i]);
        least = least_of(least, key);
        most = most_of(most, key);
        if (key == previous || *distinct > s) continue;
        previous = key;
        u32 slot = (u32)(key * 0x9E3779B97F4A7C15ull >> 54);
        for (;;) {
            u64 old = atomicCAS(&slots[slot], EMPTY, key);
            if (old == EMPTY) atomicAdd(&found->distinct, 1u);
            if (old == EMPTY || old == key) break;
            slot = (slot + 1) % SLOTS;
        }
    }
    for (u32 far = WARP / 2; far > 0; far /= 2) {
        least = least_of(least, __shfl_xor_sync(ALL_LANES, least, far));
        most = most_of(most, __shfl_xor_sync(ALL_LANES, most, far));
    }
    if (threadIdx.x % WARP == 0) {
        atomicMin(&found->least, least);
        atomicMax(&found->most, most);
    }
}

// The distinct values, ascending, the last one repeated.
__device__ __forceinline__ void levels_of_few(const u64* slots, u32 count, u32 s, double* levels) {
#pragma unroll 1
    for (u32 slot = threadIdx.x; slot < SLOTS; slot += THREADS) {
        u64 key = slots[slot];
        if (key == EMPTY) continue;
        u32 rank = 0;
#pragma unroll 8
        for (u32 other = 0; other < SLOTS; other++) rank += slots[other] < key;
        levels[rank] = value_of(key);
        if (rank + 1 < count) continue;
#pragma unroll 1
        for (u32 j = count; j < s; j++) levels[j] = value_of(key);
    }
}

// A grid over a row.
struct Grid {
    double unit;
    double base;
    double per_cell;
    u32 points;

    // The point below a value, and the share of the one above, rounded.
    __device__ __forceinline__ double share_of(double value, u32* point) const {
        double place = (value * unit - base) * per_cell;
        *point = least_of((u32)place, points - 2);
        return (least_of(place - (double)*point, 1.0) + ROUNDS_SHARES) - ROUNDS_SHARES;
    }
};

__device__ __forceinline__ Grid grid_of(double least, double most, u32 points) {
    int exponent = exponent_of(most_of(magnitude(least), magnitude(most))) + 1;
    double unit = power_of_two(least_of(most_of(-exponent, -1000), 1000)), base = least * unit;
    return {unit, base, (double)(points - 1) / (most * unit - base), points};
}

// Splits the weight of every value between the two grid points around it; `low` and `high` are halves of sums.
__device__ __forceinline__ void add_to_grid(const Row& x, const Grid& grid, u32* low, u32* high) {
#pragma unroll 1
    for (u32 i = threadIdx.x; i < x.n; i += THREADS) {
        u32 c, upper = (u32)(grid.share_of(x[i], &c) * (double)WHOLE_SHARE);
        add_to_halves(&low[c], &high[c], WHOLE_SHARE - upper);
        if (upper > 0) add_to_halves(&low[c + 1], &high[c + 1], upper);
    }
}

// As `add_to_grid`, with weights: a sum of a point is one thread's, which adds to it in the order of the values.
// `splits` has room for one of each thread.
__device__ __forceinline__ void weigh_grid(const Row& x, const Grid& grid, double* sums, Split* splits) {
#pragma unroll 1
    for (u32 start = 0; start < x.n; start += THREADS) {
        u32 i = start + threadIdx.x, held = least_of(x.n - start, THREADS);
        if (i < x.n) {
            Split mine;
            double share = grid.share_of(x[i], &mine.point), weight = x.weights[i];
            mine.upper = weight * share;
            mine.lower = weight - mine.upper;
            splits[threadIdx.x] = mine;
        }
        __syncthreads();
#pragma unroll 1
        for (u32 k = 0; k < held; k++) {
            u32 c = splits[k].point;
            if (c % THREADS == threadIdx.x) sums[c] += splits[k].lower;
            if ((c + 1) % THREADS == threadIdx.x) sums[c + 1] += splits[k].upper;
        }
        __syncthreads();
    }
}

// Ascending keys of a row, padded to a power of two by keys of no value; with weights also where each was, equal ones
// in their order.
__device__ __forceinline__ void sort_values(const Row& x, u64* keys, u16* places) {
    u32 n = x.n, size = n > 1 ? 2u << (31 - __clz((int)(n - 1))) : 1;
    bool weighted = x.weights != nullptr;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < size; i += THREADS) {
        keys[i] = i < n ? key_of(x[i]) : EMPTY;
        if (weighted) places[i] = (u16)i;
    }
    __syncthreads();
#pragma unroll 1
    for (u32 run = 2; run <= size; run *= 2) {
#pragma unroll 1
        for (u32 far = run / 2; far > 0; far /= 2) {
#pragma unroll 1
            for (u32 pair = threadIdx.x; pair < size / 2; pair += THREADS) {
                u32 i = 2 * pair - (pair & (far - 1)), j = i + far;
                u64 a = keys[i], b = keys[j];
                bool falling = i & run;
                if (weighted) {
                    u16 at = places[i], other = places[j];
                    bool after = a > b || (a == b && at > other);
                    if (after == falling) continue;
                    keys[i] = b, keys[j] = a;
                    places[i] = other, places[j] = at;
                } else {
                    keys[i] = falling ? most_of(a, b) : least_of(a, b);
                    keys[j] = falling ? least_of(a, b) : most_of(a, b);
                }
            }
            __syncthreads();
        }
    }
}

// Grid points that weigh something, and the ends; by one thread. Returns how many. With weights `low` is their sums.
__device__ __forceinline__ u32 points_of_grid(
    const u32* low, const u32* high, u32 n, bool weighted, double* points, double* masses) {
    u32 count = 0;
#pragma unroll 1
    for (u32 i = 0; i < n; i++) {
        double sum = weighted ? ((const double*)low)[i] : (double)((u64)high[i] << 32 | low[i]) * 0x1p-20;
        if (sum == 0 && i > 0 && i + 1 < n) continue;
        points[count] = (double)i;
        masses[count++] = sum;
    }
    return count;
}

// Distinct values and what each weighs, without inner ones that weigh nothing; by one thread. `weights` are in the
// order of the keys, or null.
__device__ __forceinline__ u32 points_of_values(
    const u64* keys, const double* weights, u32 n, double* points, double* masses) {
    u32 count = 0;
    u64 previous = EMPTY;
#pragma unroll 1
    for (u32 i = 0; i < n; i++) {
        u64 key = keys[i];
        double weight = weights != nullptr ? weights[i] : 1.0;
        if (key == previous) {
            masses[count - 1] += weight;
            continue;
        }
        previous = key;
        if (count > 1 && masses[count - 1] == 0) count--;
        points[count] = value_of(key);
        masses[count++] = weight;
    }
    return count;
}

// -- curve and programme ---------------------------------------------------------------------------------------

struct Curve {
    double* points;
    double* masses;
    double* x;
    double* area;
    double* best;
    double* last;
    double* after;
};

// The anchor and the scale of a curve of n points; by one thread.
__device__ __forceinline__ void anchor_curve(const Curve& curve, u32 n, Found* found) {
    const double* points = curve.points;
    double* masses = curve.masses;
    // The ends are levels and cost nothing: their weight would only shift the anchor.
    masses[0] = masses[n - 1] = 0.0;
    double total = 0.0;
#pragma unroll 1
    for (u32 i = 0; i < n; i++) total += masses[i];
    u32 anchor = 0;
    double running = masses[0];
    while (anchor < n - 1 && running < 0.5 * total) running += masses[++anchor];
    double unit = into_unit(most_of(magnitude(points[0]), magnitude(points[n - 1])));
    double origin = points[anchor] * unit;
    found->unit = unit;
    found->origin = origin;
    found->stretch = into_unit(most_of(points[n - 1] * unit - origin, origin - points[0] * unit));
    found->anchor = anchor;
}

// The four sums along a curve whose x is known, each by a thread of another warp; `after` has the integral of S.
__device__ __forceinline__ void sum_along(const Curve& curve, u32 n, u32 anchor) {
    const double* x = curve.x;
    const double* masses = curve.masses;
    if (threadIdx.x == 0) {
        double above = 0.5 * masses[anchor], area = 0.0, sum = 0.0;
        curve.area[anchor] = area;
        curve.after[anchor] = sum;
        for (u32 i = anchor + 1; i < n; i++) {
            double gap = x[i] - x[i - 1], next = area + above * gap;
            sum = sum + 0.5 * (area + next) * gap;
            area = next;
            curve.area[i] = area;
            curve.after[i] = sum;
            above += masses[i];
        }
    } else if (threadIdx.x == WARP) {
        double below = 0.5 * masses[anchor], area = 0.0, sum = 0.0;
        for (u32 i = anchor; i-- > 0;) {
            double gap = x[i + 1] - x[i], next = area + below * gap;
            sum = sum - 0.5 * (next + area) * gap;
            area = next;
            curve.area[i] = area;
            curve.after[i] = sum;
            below += masses[i];
        }
    } else if (threadIdx.x == 2 * WARP) {
        double cost = 0.0, growth = 0.0;
        for (u32 v = 0; v < n; v++) {
            if (v > 0) cost += growth * (x[v] - x[v - 1]);
            growth += masses[v] * (x[v] - x[0]);
            curve.best[v] = cost;
        }
    } else if (threadIdx.x == 3 * WARP) {
        double cost = 0.0, growth = 0.0;
        for (u32 v = n; v-- > 0;) {
            if (v < n - 1) cost += growth * (x[v + 1] - x[v]);
            growth += masses[v] * (x[n - 1] - x[v]);
            curve.last[v] = cost;
        }
    }
}

// A cost and the point it comes from: of equal costs the first point's, as a loop over points would have it.
struct Cheapest {
    double cost;
    u32 at;
    __device__ __forceinline__ void take(double other, u32 place) {
        if (other < cost) cost = other, at = place;
    }
    __device__ __forceinline__ void take_from_warp() {
        for (u32 far = WARP / 2; far > 0; far /= 2) {
            double other = __shfl_xor_sync(ALL_LANES, cost, far);
            u32 place = __shfl_xor_sync(ALL_LANES, at, far);
            if (other < cost || (other == cost && place < at)) cost = other, at = place;
        }
    }
};

__device__ __forceinline__ double infinite() { return __longlong_as_double(0x7ff0000000000000ll); }

// One more level: `path.step`. Rows of one stride do not depend on each other; few ones have a warp each.
__device__ __forceinline__ void add_level(const Curve& curve, u32 n, const double* best, double* after, u16* choice) {
    const double* x = curve.x;
    const double* area = curve.area;
#pragma unroll 1
    for (u32 stride = 1u << (31 - __clz((int)n)); stride > 0; stride /= 2) {
        bool sharing = n / stride < THREADS;
        u32 lanes = sharing ? WARP : 1, lane = threadIdx.x % lanes;
#pragma unroll 1
        for (u32 number = threadIdx.x / lanes;; number += THREADS / lanes) {
            u32 j = stride - 1 + 2 * stride * number;
            if (j >= n) break;
            u32 low = j >= stride ? choice[j - stride] : 0;
            u32 high = j + stride < n ? least_of((u32)choice[j + stride], j) : j;
            double xj = x[j], aj = area[j];
            Cheapest found = {infinite(), low};
#pragma unroll 1
            for (u32 k = low + lane; k <= high; k += lanes) found.take(best[k] + (xj * area[k] - x[k] * aj), k);
            if (sharing) found.take_from_warp();
            if (lane == 0) {
                after[j] = found.cost;
                choice[j] = (u16)found.at;
            }
        }
        __syncthreads();
    }
}

// The best path of s > 2 levels over n > s points, into `found->path`.
__device__ __forceinline__ void find_path(const Curve& curve, u32 n, u32 s, u16* choices, Found* found) {
#pragma unroll 1
    for (u32 i = threadIdx.x; i < n; i += THREADS) {
        curve.x[i] = (curve.points[i] * found->unit - found->origin) * found->stretch;
    }
    __syncthreads();
    sum_along(curve, n, found->anchor);
    __syncthreads();
#pragma unroll 1
    for (u32 v = threadIdx.x; v < n; v += THREADS) {
        double potential = curve.x[v] * curve.area[v] - 2.0 * curve.after[v];
        // Inner levels keep off both ends: costs measured from a far outlier carry its rounding.
        curve.best[v] = v > 0 ? curve.best[v] - potential : infinite();
        curve.last[v] = curve.last[v] + potential;
    }
    __syncthreads();
    double* best = curve.best;
    double* after = curve.after;
#pragma unroll 1
    for (u32 layer = 0; layer + 3 < s; layer++) {
        add_level(curve, n, best, after, choices + (u64)layer * n);
        double* filled = after;
        after = best;
        best = filled;
    }
    if (threadIdx.x < WARP) {
        Cheapest end = {infinite(), 1};
#pragma unroll 1
        for (u32 k = 1 + threadIdx.x; k + 1 < n; k += WARP) end.take(best[k] + curve.last[k], k);
        end.take_from_warp();
        if (threadIdx.x == 0) {
            u32 at = end.at;
            found->path[0] = 0;
            found->path[s - 1] = (u16)(n - 1);
#pragma unroll 1
            for (u32 place = s - 2; place > 0; place--) {
                found->path[place] = (u16)at;
                if (place > 1) at = choices[(u64)(place - 2) * n + at];
            }
        }
    }
}

// Levels from the path, or all points if they are not more; by one thread. Those on a grid are places on it.
__device__ __forceinline__ void write_levels(
    const double* points, u32 n, u32 s, bool chosen, const Found* found, double* levels) {
    u32 used = least_of(n, s), place = 0;
    double level = 0.0;
#pragma unroll 1
    for (u32 i = 0; i < used; i++) {
        double next = points[i + 1 == used ? n - 1 : chosen ? found->path[i] : i];
        if (i > 0 && next == level) continue;
        levels[place++] = level = next;
    }
    for (; place < s; place++) levels[place] = level;
}

// -- rows ------------------------------------------------------------------------------------------------------

// `values` are of the type `type`, and `weights` one for each of them, or null for ones. `room` is how many choices of
// the programme each block may write.
extern "C" __global__ void __launch_bounds__(THREADS) rows_solve(
    const void* __restrict__ values, u32 type, const double* __restrict__ weights, const Task* __restrict__ tasks,
    u32 count, u64 rows, u16* choices, u64 room, double* __restrict__ out) {
    DYNAMIC_SHARED(shared);
    Found* found = (Found*)shared;
    u64* slots = (u64*)(found + 1);
    choices += room * blockIdx.x;
    for (u64 number = blockIdx.x; number < rows; number += gridDim.x) {
        u32 first = 0;
#pragma unroll 1
        for (u32 size = count; size > 1;) {
            u32 half = size / 2;
            if (tasks[first + half].first <= number) first += half;
            size -= half;
        }
        const Task& task = tasks[first];
        u64 row = number - task.first;
        u64 start = task.start + row * task.row;
        u32 n = (u32)least_of(task.row, task.size - row * task.row), s = (u32)task.s;
        const Row x = {values, type, start, n, weights == nullptr ? nullptr : weights + start};
        double* levels = out + task.out + row * s;
        u32 most = task.mode == GRID ? (u32)task.points : n;
        double* room_of = (double*)slots;
        Curve curve = {room_of, room_of + most, room_of + 2 * most, room_of + 3 * most,
                       room_of + 4 * most, room_of + 5 * most, room_of + 6 * most};
        // Sums of weights lie where the area will, sorted keys from where the best costs will on.
        u32* low = (u32*)curve.area;
        u64* keys = (u64*)curve.best;
        // With weights: where values were, behind their keys; weights in order where x will lie; what values add to a
        // grid at the end of all.
        u16* places = (u16*)(keys + 2 * (u64)n);
        Split* splits = (Split*)(room_of + most_of(7 * most, SLOTS)) - THREADS;
        bool weighted = weights != nullptr;

        if (task.mode == SORTED) {
            sort_values(x, keys, places);
            if (weighted) {
#pragma unroll 1
                for (u32 i = threadIdx.x; i < n; i += THREADS) curve.x[i] = x.weights[places[i]];
                __syncthreads();
            }
        } else {
            if (threadIdx.x == 0) found->least = ~0ull, found->most = 0, found->distinct = 0;
#pragma unroll 1
            for (u32 slot = threadIdx.x; slot < SLOTS; slot += THREADS) slots[slot] = EMPTY;
            __syncthreads();
            look_at_values(x, s, found, slots);
            __syncthreads();
            double least = value_of(found->least), greatest = value_of(found->most);
            if (found->distinct <= s) {
                levels_of_few(slots, found->distinct, s, levels);
                __syncthreads();
                continue;
            }
            if (task.mode == GRID) {
#pragma unroll 1
                for (u32 i = threadIdx.x; i < 2 * most; i += THREADS) low[i] = 0;
                __syncthreads();
                const Grid grid = grid_of(least, greatest, most);
                // Halves of 0 are 0.
                if (weighted) weigh_grid(x, grid, (double*)low, splits);
                else add_to_grid(x, grid, low, low + most);
                __syncthreads();
            }
        }
        if (task.mode == EVEN) {
#pragma unroll 1
            for (u32 j = threadIdx.x; j < s; j += THREADS) levels[j] = (double)j;
        } else {
            if (threadIdx.x == 0) {
                u32 points = task.mode == SORTED
                    ? points_of_values(keys, weighted ? curve.x : nullptr, n, curve.points, curve.masses)
                    : points_of_grid(low, low + most, most, weighted, curve.points, curve.masses);
                found->count = points;
                if (points > 1) anchor_curve(curve, points, found);
            }
            __syncthreads();
            u32 points = found->count;
            bool chosen = points > s && s > 2;
            if (chosen) find_path(curve, points, s, choices, found);
            if (threadIdx.x == 0) write_levels(curve.points, points, s, chosen, found, levels);
            __syncthreads();
        }
        if (task.mode == SORTED) continue;
        // Places on a grid, of all its points or of one for each level.
        double low_end = value_of(found->least), high_end = value_of(found->most);
        double cells = (double)((task.mode == EVEN ? task.s : task.points) - 1);
#pragma unroll 1
        for (u32 j = threadIdx.x; j < s; j += THREADS) {
            double share = levels[j] / cells;
            levels[j] = low_end * (1.0 - share) + high_end * share;
        }
        __syncthreads();
    }
}
