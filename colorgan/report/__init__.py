"""One page and its pictures from runs, evaluations, probes and studies.

Front door: `page`.
"""
