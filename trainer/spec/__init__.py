"""The description of a model: components as data, layer by layer, and the list of its tensors. No torch, no config."""
