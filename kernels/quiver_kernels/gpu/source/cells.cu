// Values counted into the cells of a partition: integers, so in any order. See `quiver_kernels.partition`.
#include "common.cuh"

// One cell: how many values, the sum of the lower 32 bits of their offsets and of what is above, and the
// outermost offsets. All of a cell that has none: no values, nearest with all bits set.
struct Cell {
    u64 number;
    u64 low;
    u64 high;
    u64 nearest;
    u64 farthest;
};

template <class Real>
struct Layout;
template <>
struct Layout<float> {
    using Int = int;
    static constexpr int offset_bits = 16;
    static __device__ __forceinline__ int bits(float value) { return (int)(__float_as_uint(value) & 0x7fffffffu); }
};
template <>
struct Layout<double> {
    using Int = long long;
    static constexpr int offset_bits = 45;
    static __device__ __forceinline__ long long bits(double value) {
        return __double_as_longlong(value) & 0x7fffffffffffffffll;
    }
};

// `scale` is 1 over the width of the outer cells, `top` the integer of the magnitude where these begin, `base` the
// cell of row 0.
template <class Value>
__device__ __forceinline__ void count_cells(
    const typename Value::Raw* __restrict__ x, u64 n, double scale, long long top, long long base, Cell* cells) {
    using Real = typename Value::Real;
    using Plan = Layout<Real>;
    using Int = typename Plan::Int;
    constexpr Int unit = (Int)1 << Plan::offset_bits;
    const Int first = (Int)(top >> Plan::offset_bits), ahead = first - 128;
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        Real value = Value::widen(x[i]);
        Int bits = Plan::bits(value), cell = bits >> Plan::offset_bits, offset = bits & (unit - 1);
        if (cell >= first) {
            Real steps = (value < 0 ? -value : value) * (Real)scale;
            Int whole = (Int)steps;
            cell = whole + ahead;
            offset = (Int)((steps - (Real)whole) * (Real)unit);
        }
        // -0 is not below 0, and is counted as 0.
        Cell* row = cells + ((value < 0 ? ~(long long)cell : (long long)cell) - base);
        u64 place = (u64)offset;
        atomicAdd(&row->number, 1ull);
        atomicAdd(&row->low, place & 0xffffffffull);
        if (Plan::offset_bits > 32) atomicAdd(&row->high, place >> 32);
        // Most values are not outermost; what is read may be old, and is then further in.
        if (place < row->nearest) atomicMin(&row->nearest, place);
        if (place >= row->farthest) atomicMax(&row->farthest, place);
    }
}

extern "C" __global__ void __launch_bounds__(256) cells_clear(Cell* cells, u64 size) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += step) cells[i] = {0, 0, 0, ~0ull, 0};
}

#define CELLS_KERNEL(name, Value)                                                                                \
    extern "C" __global__ void __launch_bounds__(256) name(                                                      \
        const Value::Raw* __restrict__ x, u64 n, double scale, long long top, long long base, Cell* cells) {     \
        count_cells<Value>(x, n, scale, top, base, cells);                                                       \
    }

CELLS_KERNEL(cells_float16, Float16)
CELLS_KERNEL(cells_bfloat16, Bfloat16)
CELLS_KERNEL(cells_float32, Float32)
CELLS_KERNEL(cells_float64, Float64)
