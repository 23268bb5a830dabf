"""What is learned: the pretext task of coloring, and the downstream tasks; and what is made of a run.

Front doors, each the work of a launcher: `pretraining` (with `sample_data`), `finetuning`,
`consolidating`, `photo_coloring`, `encoder_import`.
"""
