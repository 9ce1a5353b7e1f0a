// Values of an array of any strides, put one after the other in C order. They are moved as bits.
#include "common.cuh"

// `layout` holds `dimensions` sizes, then as many strides in bytes.
template <class Raw>
__device__ __forceinline__ void gather(
    const u8* __restrict__ x, u64 n, const long long* __restrict__ layout, u32 dimensions, Raw* __restrict__ out) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        u64 rest = i;
        long long place = 0;
        for (u32 d = dimensions; d > 0; d--) {
            u64 size = (u64)layout[d - 1];
            place += (long long)(rest % size) * layout[dimensions + d - 1];
            rest /= size;
        }
        out[i] = *(const Raw*)(x + place);
    }
}

#define GATHER_KERNEL(name, Raw)                                                                             \
    extern "C" __global__ void __launch_bounds__(256) name(                                                  \
        const u8* __restrict__ x, u64 n, const long long* __restrict__ layout, u32 dimensions, Raw* out) {   \
        gather<Raw>(x, n, layout, dimensions, out);                                                          \
    }

GATHER_KERNEL(gather_16, u16)
GATHER_KERNEL(gather_32, u32)
GATHER_KERNEL(gather_64, u64)
