"""A corpus to tar shards with manifest and checksums.

Front doors: `pack`, `merging`, `rebuilding`, `verifying`.
"""
