"""Other trainers' configs as experiment files: `trident migrate`. No torch.

`reading.py` reads foreign files without running them, a file a trainer says what its settings are here, `draft.py` is
the experiment that grows meanwhile, and `side_by_side.py` counts parameters and tokens of both.
"""
