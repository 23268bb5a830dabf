"""Outputs to numbers: scores of generators and of fine-tuned models, written with their evidence.

Front doors: `evaluate` (the command), `settings`, `record` (scores.json), `metrics`,
`generator_scores`, `downstream` (the tasks), `strips` (saved pictures).
"""
