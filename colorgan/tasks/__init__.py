"""What is learned: the pretext task of coloring, and the downstream tasks.

Front doors: `pretraining` and `finetuning`, the jobs of their launchers.
"""
