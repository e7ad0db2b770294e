"""The partition of the model into stages, and the messages between them."""
