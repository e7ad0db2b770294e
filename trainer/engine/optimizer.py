"""AdamW over two parameter groups, with the kernel that fits where the optimizer state lives."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from trainer.config.schema import AdamImplementation, OptimizerConfig, ZeroConfig
from trainer.engine.adam import adam_implementation
from trainer.engine.process_patches import ask_for_the_processor_once
from trainer.errors import ConfigError, first_line
from trainer.tensor_parallel.init import tensor_spec


def decay_groups(parameters: Iterable[torch.nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Split parameters by what the model says of their tensors: matrices decay, norms and biases do not."""
    decayed: list[torch.nn.Parameter] = []
    free: list[torch.nn.Parameter] = []
    for parameter in parameters:
        if parameter.requires_grad:
            (decayed if tensor_spec(parameter).decays else free).append(parameter)
    groups: list[dict[str, object]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


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
    # One kernel for all of a tensor's arithmetic, on the CPU too: there a quarter of the time of torch's default.
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)
