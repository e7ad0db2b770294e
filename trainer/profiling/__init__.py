"""Where the time of a step goes: a trace of some steps on some ranks, and a table made from it."""
