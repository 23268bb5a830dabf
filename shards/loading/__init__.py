"""Packed folders to batches, in one global order for any number of ranks.

Front doors: `loader.Loader`, `shard_set.open_shards`.
"""
