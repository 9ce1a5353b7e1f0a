"""The CPU backend: Numba kernels that release the GIL, driven chunk by chunk."""
