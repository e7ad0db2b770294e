"""The model families of Hugging Face's transformers, as data: their config keys, their tensors, what they cannot say."""
