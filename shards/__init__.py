"""WebDataset tar shards: packing, manifest, global order, and loading through DALI as CIELAB."""
