"""The choice of the `Sharding` class for an engine's optimizer."""

from __future__ import annotations

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from trainer.config.plan import RunPlan
from trainer.engine.deepspeed_surface import DeepSpeedEngineSurface
from trainer.engine.sharding import Sharding
from trainer.engine.sharding_bf16 import Bf16Partitions
from trainer.engine.sharding_without_zero import WithoutZero
from trainer.engine.sharding_zero3 import SubGroups
from trainer.engine.sharding_zero12 import FlatPartitions

WAYS: dict[type, type[Sharding]] = {
    DeepSpeedZeroOptimizer_Stage3: SubGroups,
    DeepSpeedZeroOptimizer: FlatPartitions,
    BF16_Optimizer: Bf16Partitions,
}


def sharding_of(engine: DeepSpeedEngineSurface, plan: RunPlan) -> Sharding:
    """Return the class's view of how DeepSpeed keeps an engine's optimizer.

    Raises:
        TypeError: no class knows this wrapper. Its norm would not be judged and its master weights would not be saved.
    """
    optimizer: object = engine.optimizer
    basic: object = engine.basic_optimizer
    for wrapper, way in WAYS.items():
        if isinstance(optimizer, wrapper):
            return way(engine, plan)
    if optimizer is basic and isinstance(optimizer, torch.optim.Optimizer):
        return WithoutZero(engine, plan)
    known = ", ".join(sorted(wrapper.__name__ for wrapper in WAYS))
    raise TypeError(
        f"DeepSpeed must keep an optimizer in a way that is known here (plain, {known}), but it made a "
        f"{type(optimizer).__name__}; it needs a class beside those of `trainer.engine.sharding_of`"
    )
