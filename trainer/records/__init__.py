"""Records: the folder of a run, read tolerantly, as one value. No torch."""
