"""GPT: blocks that call tensor-parallel layers. Knows no pipeline."""
