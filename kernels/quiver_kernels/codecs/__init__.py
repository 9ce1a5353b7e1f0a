"""Codecs for chunked arrays: of numcodecs, for Zarr format 2 and HDF5-like stores, and of Zarr 3.

Both are found by name, ``quiver``, through entry points; `chunks` is what they have in common.
"""
