"""Encoded images to Lab tensors: the DALI graph, and the fused CPU kernels."""
