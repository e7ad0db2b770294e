"""Starting ranks, reading a launcher's environment, and noticing lost ranks. No torch."""
