"""`trident data audit`: which samples each step of a run saw, proven from what its folder holds."""
