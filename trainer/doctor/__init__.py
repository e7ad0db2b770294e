"""The doctor: what this machine can run, what is broken in it, and how that is mended."""
