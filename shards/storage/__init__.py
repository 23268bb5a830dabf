"""Where shards are read from: local files, a bounded cache of fetched ones, a node's own disk.

Used by shards.loading and shards.packing. Modules: shard_files (reading by offset), remote (URLs),
cache, transfer, retries, staging.
"""
