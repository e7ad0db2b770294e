"""The model families of Hugging Face's transformers, as data: keys of their configs, tensors, and what is missing."""
