"""How the layers of a rank compute what the plan says, settled before anything runs through them."""

from __future__ import annotations

import torch
from torch import nn

from trainer.config.plan import RunPlan
from trainer.engine.compiled import compile_blocks, use_liger
from trainer.engine.processor import multiplies_by_onednn
from trainer.tensor_parallel.gradients import add_gradients_in_place
from trainer.tensor_parallel.products import multiply_by_onednn


def choose_kernels(layers: nn.Module, plan: RunPlan, device: torch.device) -> None:
    """Choose where gradients are added, who multiplies, and what is compiled. Local.

    Raises:
        ConfigError: see `multiplies_by_onednn`.
    """
    if plan.zero_stage == 0:
        # ZeRO's optimizers need to be told of every gradient; without them nobody looks before the step.
        add_gradients_in_place(layers.parameters())
    if multiplies_by_onednn(plan, device):
        multiply_by_onednn(layers.parameters())
    if plan.config.runtime.compile:
        compile_blocks(layers)
    if plan.config.runtime.liger:
        use_liger(layers)
