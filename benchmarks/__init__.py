"""Benchmarks of Trident against itself and against its peers. One command each: `python -m benchmarks --help`."""
