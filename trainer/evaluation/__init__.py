"""Scores of a trained model: the loss on documents, and tasks of the Language Model Evaluation Harness."""
