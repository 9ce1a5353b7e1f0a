"""Vectors whose shards lie apart: files in a directory, arrays in a Ray cluster (docs/ray.md)."""
