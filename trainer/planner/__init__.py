"""Predictions of a run's needs, computed from its plan before anything is started. No torch."""
