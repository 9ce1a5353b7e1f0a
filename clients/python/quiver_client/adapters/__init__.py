"""Thin adapters to libraries that train and store models; each module needs one of them.

`torch_ddp` (extra ``torch``), `flower` (extra ``flower``), `safetensors_io` (extra
``safetensors``). Nothing here is imported by the rest of the client.
"""
