"""Predictions made by hand, for what is done with them."""

from __future__ import annotations

from dataclasses import replace

from trainer.planner.constants import Constant
from trainer.planner.prediction import GIB, Confidence, Prediction, StageMemory, StepTime

NOTHING = StageMemory(**dict.fromkeys(StageMemory.__dataclass_fields__, 0))
NO_TIME = StepTime(**{name: 0.0 for name in StepTime.__dataclass_fields__ if name != "data_parallel_hidden"})


def stage(overhead: int = GIB, **bytes_: int) -> StageMemory:
    """Return a stage that holds these bytes, and a GiB of overhead."""
    return replace(NOTHING, overhead=overhead, in_flight=1, **bytes_)


def prediction(
    *stages: StageMemory,
    step_s: float = 0.5,
    step_error: float = 0.1,
    memory_error: float = 0.05,
    device_gib: float = 80,
) -> Prediction:
    """Return a prediction; without stages of one that holds 4 GiB, of which 1 is overhead."""
    return Prediction(
        stages=stages or (stage(weights=GIB, moments=2 * GIB),),
        time=replace(NO_TIME, gemm=0.8 * step_s, launch=0.2 * step_s, data_parallel_hidden=0.1),
        bubble_fraction=0.2,
        device_bytes=int(device_gib * GIB),
        host_bytes=None,
        ranks_per_node=1,
        tokens_per_second=4096.0,
        tflops_per_gpu=1.5,
        mfu=None,
        hfu=None,
        confidence=Confidence(step_error, memory_error, "by hand"),
        constants={"peak_flops": Constant(1e14, "nobody")},
    )
