"""One module a contender; each has `run(case, options, gate)`. Imported only inside their own processes."""
