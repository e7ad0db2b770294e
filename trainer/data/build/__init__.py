"""Units of input turned into shards of tokens on all cores: restartable, and the same bytes whoever does it. No torch."""
