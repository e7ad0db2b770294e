"""Where a rank stands: rank arithmetic and process groups."""
