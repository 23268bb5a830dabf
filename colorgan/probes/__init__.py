"""Judge frozen features: linear SVMs, few labels, nearest neighbors.

Front doors: `probe` (the command), `settings`, `record` (probe.json).
"""
