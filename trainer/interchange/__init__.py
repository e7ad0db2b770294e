"""The weights of Hugging Face folders: tensors read one at a time, in our names and our layouts."""
