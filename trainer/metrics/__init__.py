"""Throughput, memory, console, jsonl, wandb: hooks of the loop."""
