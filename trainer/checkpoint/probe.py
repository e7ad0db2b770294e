"""The loss on a fixed micro-batch: saved with a checkpoint, and expected again after it was loaded, in any layout.

Sizes and hashes show that the bytes are those that were written. This loss shows that they mean the same to the model
that reads them: a tensor in the wrong place or sharded in the wrong way gives another loss.
"""

from __future__ import annotations

import math

import torch

from trainer.config.plan import RunPlan
from trainer.config.schema import Dtype
from trainer.engine.face import Engine
from trainer.engine.fixed_batch import fixed_micro_batches
from trainer.errors import CheckpointError

TOLERANCE = {Dtype.fp32: 1e-5, Dtype.fp16: 2e-3, Dtype.bf16: 1e-2}
"""Relative tolerance. Another layout adds in another order; a dtype's share is some units in its last place."""


def probe_loss(engine: Engine, plan: RunPlan, device: torch.device, length: int | None = None) -> float:
    """Return the loss on the fixed micro-batch, of sequences of `length` tokens (None: as long as the run's).

    Collective over the world; syncs the host with the device.
    """
    return float(engine.evaluate(fixed_micro_batches(plan, device, length)).loss)


def check_probe(saved: float, found: float, saved_dtype: str, dtype: Dtype) -> None:
    """Check that a checkpoint gives the loss that it gave when it was saved.

    Raises:
        CheckpointError: it gives another one.
    """
    tolerance = max(TOLERANCE[dtype], TOLERANCE[Dtype(saved_dtype)])
    # Not `>`, because a NaN must not pass.
    if not abs(found - saved) <= tolerance * max(abs(saved), 1.0) or not math.isfinite(found):
        raise CheckpointError(
            f"the loss on the fixed micro-batch must be {saved:.7g} as when the checkpoint was saved (within "
            f"{tolerance:g} relative), but is {found:.7g}: the weights do not mean the same to this model",
            hints=["give model.* the values of the run that saved it", "try the layout that saved it"],
        )
