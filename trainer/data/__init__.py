"""Tokenizers, memory-mapped shards, the sampler and batches."""
