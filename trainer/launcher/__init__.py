"""Starting ranks, finding out about a launcher around us, and noticing lost ranks. No torch."""
