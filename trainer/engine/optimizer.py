"""AdamW over two parameter groups, with the kernel that fits the place of the optimizer state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from trainer.config.schema import AdamImplementation, OptimizerConfig, ZeroConfig
from trainer.engine.adam import adam_implementation
from trainer.engine.deepspeed_surface import BasicOptimizer
from trainer.engine.process_patches import ask_for_the_processor_once
from trainer.errors import ConfigError, first_line
from trainer.tensor_parallel.init import tensor_spec

DECAYS = "decays"
"""Key of a parameter group: whether it is the one of the parameters that decay."""


def decay_groups(parameters: Iterable[torch.nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Split parameters by their tensors' entries in the model: matrices decay, norms and biases do not."""
    decayed: list[torch.nn.Parameter] = []
    free: list[torch.nn.Parameter] = []
    for parameter in parameters:
        if parameter.requires_grad:
            (decayed if tensor_spec(parameter).decays else free).append(parameter)
    groups: list[dict[str, object]] = [
        {"params": decayed, "weight_decay": weight_decay, DECAYS: True},
        {"params": free, "weight_decay": 0.0, DECAYS: False},
    ]
    return [group for group in groups if group["params"]]


@contextmanager
def something_to_step(parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Let a parameter pass for trained while DeepSpeed wraps the optimizer of a stage whose parameters are all frozen.

    DeepSpeed cannot wrap an optimizer without parameters, and all stages meet in the collectives of its step. Outside
    the parameter is frozen again: it gets no gradient and, see `never_decay`, no decay, so that no step changes it.
    """
    held = list(parameters)
    if any(parameter.requires_grad for parameter in held):
        yield
        return
    smallest = min(held, key=torch.nn.Parameter.numel)
    smallest.requires_grad_(True)
    try:
        yield
    finally:
        smallest.requires_grad_(False)


def never_decay(optimizer: BasicOptimizer) -> None:
    """Switch weight decay off: for an optimizer that steps nothing but what `something_to_step` let pass."""
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter], config: OptimizerConfig, zero: ZeroConfig
) -> torch.optim.Optimizer:
    """Return AdamW over `decay_groups`."""
    groups = decay_groups(parameters, config.weight_decay)
    betas = (config.beta1, config.beta2)
    if adam_implementation(config, zero) is AdamImplementation.deepspeed_cpu:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        ask_for_the_processor_once()
        try:
            optimizer: torch.optim.Optimizer = DeepSpeedCPUAdam(
                groups, lr=config.lr, betas=betas, eps=config.eps, adamw_mode=True
            )
        except (RuntimeError, ImportError) as error:
            cause = error.__cause__ or error
            if isinstance(cause, ConfigError):
                raise cause from error
            raise ConfigError(
                "optimizer.implementation=deepspeed_cpu must be able to compile its kernel here, but: "
                f"{first_line(cause)}",
                hints=[
                    "what the compiler said is in the rank's log",
                    "if the kernel was compiled for another version of torch, delete its folder",
                    "or set optimizer.implementation=torch (slower, same numbers)",
                ],
            ) from error
        return optimizer
    # One kernel does all arithmetic of a tensor, on the CPU too: it takes a quarter of the time of torch's default
    # there.
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)
