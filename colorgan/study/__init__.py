"""Studies: fine-tune every arm with every seed by every protocol, and compare with intervals.

Front doors: `study` (the command), `record` (study.json).
"""
