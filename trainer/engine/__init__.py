"""The two DeepSpeed engines behind one face; optimizer, ZeRO, offload."""
