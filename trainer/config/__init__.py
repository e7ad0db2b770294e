"""Schema, validation, RunPlan, DeepSpeed JSON. No torch."""
