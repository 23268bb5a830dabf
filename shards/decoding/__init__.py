"""Bytes to tensors: one DALI graph for CPU and GPU, and the CPU's fused kernels.

Used by shards.loading. Modules: spec (the work), dali (the graph), lab and resize (numba kernels),
buffers (output memory that is reused).
"""
