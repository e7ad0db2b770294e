"""What the ranges in a trace are called, by whoever makes them and by whoever reads them. No torch."""

from __future__ import annotations

STEP = "trident step "
"""Range of a recorded step, with its number."""
PHASE = "trident phase "
"""Range of what a rank does within a step: a phase of `trainer.progress` or an instruction of the pipeline."""
COMMUNICATION = "trident comm "
"""Range of a call that talks to other ranks: axis and kind."""

FORWARD, BACKWARD, OPTIMIZER = "forward", "backward", "optimizer"
DATA, COPIES, HOST = "data", "copies", "host"
AXES = ("tensor", "data", "pipeline", "mesh")
"""`mesh`: groups along more than one axis."""
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "broadcast", "messages", "other")

PART_OF_PHASE = {
    "forward": FORWARD,
    "ForwardPass": FORWARD,
    "backward": BACKWARD,
    "BackwardPass": BACKWARD,
    "optimizer": OPTIMIZER,
    "ReduceGrads": OPTIMIZER,
    "ReduceTiedGrads": OPTIMIZER,
    "OptimizerStep": OPTIMIZER,
    "data": DATA,
    "LoadMicroBatch": DATA,
}
"""Parts that phases stand for; the others (sends and receives without what they wait for) are the host's."""

PARTS = (
    FORWARD,
    BACKWARD,
    OPTIMIZER,
    *(f"{axis} {kind}" for axis in AXES for kind in KINDS),
    COPIES,
    DATA,
    HOST,
)
"""All parts of a step, in the order in which they are shown."""
