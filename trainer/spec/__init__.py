"""What a model is: components as data, layer by layer, and the list of its tensors. No torch, no config."""
