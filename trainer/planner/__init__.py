"""What a run will need, computed from its plan before anything is started. No torch."""
