"""Kernels in CUDA C++, and the backend that runs them; imported only when asked for."""
