"""The process groups of a rank, and the agreement of ranks."""
