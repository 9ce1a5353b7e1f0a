// Sums of decoded vectors in float64: the terms of each value are added in the vectors' order.
#include "common.cuh"

// A vector of the sum: where its codes begin, and its tables, already times its share; values that share a table,
// entries of one, bits of a code.
struct Term {
    u64 codes;
    u64 tables;
    u64 row;
    u64 s;
    u64 bits;
};

// Adds to every total its entries of all tables, or to 0 where the totals are `fresh`. `most`, one number for each
// vector, becomes the largest code that points beyond its table, if there is one.
extern "C" __global__ void __launch_bounds__(256) mean_add(
    const u8* __restrict__ codes, const double* __restrict__ tables, const Term* __restrict__ terms, u32 count, u64 n,
    u32 fresh, double* __restrict__ totals, u32* most) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        double total = fresh ? 0.0 : totals[i];
        for (u32 v = 0; v < count; v++) {
            u64 row = terms[v].row, s = terms[v].s, r = 0;
            u32 bits = (u32)terms[v].bits;
            // Divisions of 32 bits are several times faster.
            if (row < n) r = n >> 32 ? i / row : (u32)i / (u32)row;
            u32 code = code_at(codes + terms[v].codes, r, i - r * row, (row * bits + 7) / 8, bits);
            if (code >= s) {
                atomicMax(&most[v], code);
                code = (u32)s - 1;
            }
            total += tables[terms[v].tables + r * s + code];
        }
        totals[i] = total;
    }
}
