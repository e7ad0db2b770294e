"""One rank of a trial: it trains a few steps through the engine that a run has, and tells what it saw."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import TridentConfig
from trainer.engine.build import build_engine
from trainer.engine.face import Engine, Fragment
from trainer.engine.world import start_world
from trainer.mesh import Coordinate
from trainer.proving.proof_batches import GlobalBatch, global_batches
from trainer.proving.proof_weights import Given, drawn_weights
from trainer.spec.stepping import EMA, WEIGHT
from trainer.tensor_parallel.shard import ShardSpec, shared_part
from trainer.topology.groups import ParallelGroups

FIRST_MOMENT = "exp_avg"


@dataclass(frozen=True)
class RankOutcome:
    """The numbers and tensors that one rank saw in a trial."""

    place: Coordinate
    losses: tuple[float, ...]
    """Loss of each step."""
    grad_norms: tuple[float, ...]
    """Gradient norm of each step, before clipping."""
    skipped: tuple[bool, ...]
    """True for each step whose update was not applied."""
    first_moments: Sequence[Fragment]
    """First moments after step 1, a share of the clipped gradient: what this rank has to write of them."""
    masters: Sequence[Fragment]
    """fp32 master weights after the last step, and their averages if they are kept, likewise."""
    specs: Mapping[str, ShardSpec]
    weights: Mapping[str, torch.Tensor]
    """This rank's shards of the weights that forward reads; only on the first replica."""
    digests: Mapping[str, bytes]
    """Hash of each of them, on every replica."""
    shared: Mapping[str, bytes]
    """Hash of the part of each that all tensor-parallel ranks hold."""
    tensor_parallel_size: int


def plan_of_trial(config: TridentConfig) -> RunPlan:
    """Return the plan of a trial."""
    assert config.model.vocab_size is not None, "a scaled model has a vocabulary of its own"
    return make_plan(config, config.model.vocab_size)


def train_trial(config: TridentConfig, steps: int, groups: ParallelGroups, only: str | None = None) -> RankOutcome:
    """Train a trial on this rank, and return what it saw. Collective over the world.

    Args:
        config: of the trial.
        steps: number of steps.
        groups: this rank's place, in the trial's layout.
        only: see `drawn_weights`.
    """
    plan = plan_of_trial(config)
    source = Given(drawn_weights(plan, only), groups.tensor.rank, groups.tensor.size)
    engine = build_engine(plan, groups, source=source)
    batches = global_batches(config, plan.model.vocab_size, steps)
    try:
        return _trained(engine, plan, batches, config.optimizer.lr, groups)
    finally:
        del engine
        gc.collect()


def _trained(
    engine: Engine, plan: RunPlan, batches: Sequence[GlobalBatch], rate: float, groups: ParallelGroups
) -> RankOutcome:
    losses, norms, skipped = [], [], []
    first: list[Fragment] = []
    for step, batch in enumerate(batches, start=1):
        parts = list(batch.micro_batches(plan, groups.samples.rank, step, groups.device))
        result = engine.train_step(parts, rate)
        losses.append(float(result.loss))
        norms.append(float(result.grad_norm))
        skipped.append(result.skipped)
        if step == 1:
            first = [one for one in engine.fragments(only_trained=True) if one.kind == FIRST_MOMENT]
    weights, specs = dict(engine.local_parameters()), dict(engine.shard_specs())
    shared = {name: shared_part(own, specs[name], groups.tensor.size) for name, own in weights.items()}
    return RankOutcome(
        groups.place,
        tuple(losses),
        tuple(norms),
        tuple(skipped),
        first,
        [one for one in engine.fragments() if one.kind in (WEIGHT, EMA)],
        specs,
        weights if groups.gradients.rank == 0 else {},
        {name: _digest(own) for name, own in weights.items()},
        {name: _digest(part) for name, part in shared.items() if part is not None},
        groups.tensor.size,
    )


def _digest(tensor: torch.Tensor) -> bytes:
    return hashlib.blake2b(tensor.contiguous().numpy().tobytes(), digest_size=8).digest()


def forked_trials(
    rank: int, world_size: int, trials: Sequence[tuple[TridentConfig, str | None]], steps: int
) -> list[RankOutcome]:
    """Train several trials, each with what is drawn of it, one after the other, in a forked rank of their world."""
    found = []
    for config, only in trials:
        groups = start_world(plan_of_trial(config).mesh, config.runtime, torch.device("cpu"))
        found.append(train_trial(config, steps, groups, only))
    return found
