"""The training loop, and what is measured in images seen; knows no GAN, no folder and no score.

Front door: `loop.fit`; `plan`, `memory` and `schedules` work out beforehand what a run will do.
"""
