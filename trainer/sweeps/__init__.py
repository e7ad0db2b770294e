"""Several runs of one command: every combination of values, or a search; each in its own folder and process."""
