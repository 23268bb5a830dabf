"""The pretext task of coloring, the downstream tasks, and what is made of their runs.

Front doors, each the work of a launcher: `pretraining` (with `sample_data`), `finetuning`,
`consolidating`, `photo_coloring`, `encoder_import`.
"""
