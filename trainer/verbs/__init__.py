"""The verbs of the command line: a file a verb, its words declared as data. No torch before a rank computes."""
