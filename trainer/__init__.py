"""Trident: a 3D-parallel GPT trainer on DeepSpeed (pipeline x tensor x ZeRO data parallelism)."""

__version__ = "0.1.0"
