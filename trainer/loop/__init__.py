"""The step loop, its state and its hooks' protocol."""
