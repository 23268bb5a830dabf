"""Ranks, and the strategies (one process, DDP, ZeRO) that train networks over them.

Front doors: `ranks` (this process among the others), `strategy.open_strategy`, `phase` (what
training asks of a strategy), `state` (named pieces of tensors, as checkpoints store them).
"""
