"""Names of the ranges in a trace, shared by their makers and their readers. No torch."""

from __future__ import annotations

STEP = "trident step "
"""Name of the range of a recorded step, followed by the step's number."""
PHASE = "trident phase "
"""Name of the range of a phase within a step: a phase of `trainer.progress` or an instruction of the pipeline."""
COMMUNICATION = "trident comm "
"""Name of the range of a call that communicates with other ranks: axis and kind."""

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
"""Parts that phases stand for; the others (sends and receives, without their waits) count as the host's."""

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
