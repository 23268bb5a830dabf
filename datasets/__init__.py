"""Corpora as their makers distribute them: an adapter each, the drawn sample, the downloads."""
