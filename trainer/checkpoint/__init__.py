"""Saving, resuming, reading weights."""
