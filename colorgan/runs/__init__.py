"""The run folder and what watches it: log, display, health, watchdog; reading beside writing.

Front doors: `run` (a run while it trains), `reading` (a run read back), `provenance`, `log`.
"""
