"""Sampling text from a checkpoint."""
