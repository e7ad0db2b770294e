"""`trident compare`: two runs beside each other, and the first place at which they part. No torch."""
