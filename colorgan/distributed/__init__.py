"""Ranks and the strategies that train networks over them.

Front doors: `ranks` (join the process group), `strategy.open_strategy` (DDP or DeepSpeed), `phase`
(their protocol).
"""
