"""The choice of kernels for the layers of a rank, as the plan asks, made before anything runs through them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from trainer.config.plan import RunPlan
from trainer.kernels.gemm import multiply_by_onednn
from trainer.kernels.loss_programs import compiled_loss
from trainer.kernels.pointwise import LigerPointwise
from trainer.kernels.processor import multiplies_by_onednn
from trainer.log import say
from trainer.model.block import Block
from trainer.model.mlp import MLP
from trainer.model.norm import Norm
from trainer.tensor_parallel.embedding import VocabParallelEmbedding
from trainer.tensor_parallel.head import VocabParallelHead

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
DEFAULT_CACHE = "~/.cache/trident/compiled"


def choose_kernels(layers: nn.Module, plan: RunPlan, device: torch.device) -> None:
    """Choose the library for matrix multiplication, and compile the parts that are to be compiled. Local.

    Raises:
        ConfigError: see `multiplies_by_onednn`.
    """
    if multiplies_by_onednn(plan, device):
        multiply_by_onednn(layers.parameters())
    runtime = plan.config.runtime
    if runtime.compile:
        compile_blocks(layers)
    if runtime.liger:
        use_liger(layers)


def compile_blocks(model: nn.Module) -> None:
    """Let the blocks of this rank, and the passes of the fused loss, be compiled at their first call. Local.

    All blocks share one program.

    Compiled programs are kept in the folder that TORCHINDUCTOR_CACHE_DIR names, and used again by later runs.
    """
    os.environ.setdefault(CACHE_VARIABLE, str(Path(DEFAULT_CACHE).expanduser()))
    for module in model.modules():
        if isinstance(module, Block):
            module.compile_transform()
        elif isinstance(module, VocabParallelEmbedding | VocabParallelHead):
            module.programs = compiled_loss()


def say_what_is_compiled() -> None:
    """Print why the first step takes long."""
    say(
        "the blocks are compiled in the first step and the first evaluation (runtime.compile): that takes up to some "
        f"minutes once, later runs find it in {os.environ[CACHE_VARIABLE]}"
    )


def use_liger(model: nn.Module) -> None:
    """Let Liger's kernels compute the norms and the gated activations of this rank. Local."""
    for module in model.modules():
        if isinstance(module, Norm | MLP):
            module.pointwise = LigerPointwise()
