"""Megatron-style tensor parallelism: mappings, linears, embedding, cross-entropy."""
