"""GPT: blocks that call tensor-parallel layers, and its accounting. Knows no pipeline."""
