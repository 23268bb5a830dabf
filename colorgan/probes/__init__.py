"""Judge frozen features: linear SVMs, few labels, nearest neighbors, softmax classifiers.

Front doors: `probe` (the command), `settings`, `record` (probe.json).
"""
