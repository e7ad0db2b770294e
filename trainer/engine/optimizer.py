"""The optimizer over groups of parameters, with the kernel that fits the place of its state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from trainer.config.schema import AdamImplementation, OptimizerConfig, ZeroConfig
from trainer.engine.adam import adam_implementation
from trainer.engine.deepspeed_surface import GROUP, BasicOptimizer
from trainer.engine.lion import Lion
from trainer.engine.muon import MatrixSteps
from trainer.engine.process_patches import ask_for_the_processor_once
from trainer.engine.sharding import Sharding
from trainer.errors import ConfigError, first_line
from trainer.spec.stepping import StepGroup, Stepping, StepRule
from trainer.tensor_parallel.init import tensor_spec
from trainer.topology.groups import ParallelGroups


def step_groups(
    parameters: Iterable[torch.nn.Parameter], stepping: Stepping, weight_decay: float
) -> list[dict[str, object]]:
    """Return the trained parameters as an optimizer's groups, in the order of `Stepping.groups`."""
    held = [(parameter, tensor_spec(parameter)) for parameter in parameters if parameter.requires_grad]
    members: dict[StepGroup, list[torch.nn.Parameter]] = {
        group: [] for group in stepping.groups(tensor for _, tensor in held)
    }
    for parameter, tensor in held:
        members[stepping.group(tensor)].append(parameter)
    return [
        {"params": found, "weight_decay": weight_decay * group.decay if group.decays else 0.0, GROUP: group}
        for group, found in members.items()
    ]


def set_learning_rate(groups: Iterable[dict[str, object]], learning_rate: float) -> None:
    """Set the rate of the next step: each group has its factor of it."""
    for group in groups:
        own = group[GROUP]
        assert isinstance(own, StepGroup)
        group["lr"] = learning_rate * own.rate


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
    parameters: Iterable[torch.nn.Parameter], stepping: Stepping, config: OptimizerConfig, zero: ZeroConfig
) -> torch.optim.Optimizer:
    """Return the optimizer that the config asks for, over `step_groups`."""
    groups = step_groups(parameters, stepping, config.weight_decay)
    betas = (config.beta1, config.beta2)
    if stepping.rule is StepRule.lion:
        return Lion(groups, config.lr, betas)
    if stepping.rule is StepRule.muon:
        return MatrixSteps(groups, config)
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


def attach_matrices(optimizer: MatrixSteps, sharding: Sharding, groups: ParallelGroups) -> None:
    """Tell Muon where the matrices lie that it steps. Collective over the replicas; called once, after the build."""
    stepping = sharding.stepping
    stepped = (
        (tensor, parameters)
        for tensor, parameters in sharding.stepped()
        if any(stepping.group(tensor_spec(parameter)).rule is StepRule.muon for parameter in parameters)
    )
    optimizer.attach(stepped, sharding.wrapped_pieces(), groups)
