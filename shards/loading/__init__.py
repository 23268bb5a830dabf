"""Packed folders to batches of normalised Lab, for training and evaluation.

Front doors: loader.Loader, shard_set.open_shards, boxes.Boxes, label_scan. The path of a sample:

    shards/order.py     which samples come next
    fetch_ahead         remote shards are fetched before they are due
    read_ahead          threads read and check the bytes (members, labels), with run_reads' hints
    micro_batches       DALI decodes, bad samples are replaced, boxes follow their image
    stream              all of that in a background thread, with a bounded queue
    loader              batches per global step, for training and for evaluation
"""
