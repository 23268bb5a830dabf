"""Sharded checkpoints: find, verify, read, write, and consolidate into one model folder.

Front doors: `checkpoint` (read), `writer` (write in the background), `consolidation` (one model
folder).
"""
