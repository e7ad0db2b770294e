"""`trident data inspect`: what lies in a folder of tokens or texts, seen through a bounded sample. No torch."""
