"""`trident watch` and `trident runs`: runs looked at from their folders, here or on another machine. No torch."""
