"""Text sources, tokenizers, memory-mapped shards, the sampler and batches."""
