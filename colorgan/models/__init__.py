"""Networks and the folders they are stored in.

Front doors: `model_folder` (build, load, save), `generator.Generator` (the public API), `modes`
(inference, dropout keys).
"""
