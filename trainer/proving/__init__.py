"""Proving a config: its model, scaled down, trained in several layouts and by the oracle."""
