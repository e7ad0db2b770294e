"""A trained model that is used without training: found, planned for a layout, and read by the ranks that share it."""
