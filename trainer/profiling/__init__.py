"""Profiles of a step's time: a trace of some steps on some ranks, and a table made from it."""
