"""The verbs of the command line: one file a verb, its words declared as data. No torch before a rank computes."""
