"""Whole tensors, put together from what the ranks of a trial hold, and where their copies differ."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch

from trainer.engine.face import Fragment
from trainer.proving.rank_outcome import RankOutcome
from trainer.tensor_parallel.shard import ShardSpec, unshard, without_padding


class NotWhole(Exception):
    """Fragments do not make whole tensors; says which."""


def from_fragments(fragments: Iterable[Fragment]) -> dict[str, torch.Tensor]:
    """Put tensors together from what all ranks would write of one kind: every element exactly once.

    Raises:
        NotWhole: an element is there twice, or not at all.
    """
    specs: dict[str, ShardSpec] = {}
    sizes: dict[str, int] = {}
    shards: dict[str, list[torch.Tensor]] = {}
    for one in fragments:
        spec, size = one.spec, one.tensor_parallel_size
        if spec.name not in shards:
            count = size if spec.dim is not None else 1
            numel = math.prod(spec.local_shape(size))
            shards[spec.name] = [torch.full((numel,), math.nan) for _ in range(count)]
            specs[spec.name], sizes[spec.name] = spec, size
        place = shards[spec.name][one.tp_rank].narrow(0, one.start, one.values.numel())
        if not bool(place.isnan().all()):
            raise NotWhole(f"elements of {spec.name} are held twice")
        # A value that is not a number stands for itself, and not for one that is missing.
        place.copy_(torch.where(one.values.isnan(), math.inf, one.values))
    whole = {}
    for name, parts in shards.items():
        spec = specs[name]
        if any(bool(part.isnan().any()) for part in parts):
            raise NotWhole(f"no rank holds some elements of {name}")
        views = [part.view(spec.local_shape(sizes[name])) for part in parts]
        whole[name] = without_padding(unshard(views, spec) if spec.dim is not None else views[0], spec)
    return whole


def weights_of(outcomes: Sequence[RankOutcome]) -> dict[str, torch.Tensor]:
    """Put the weights that forward reads together, of the first replica; of a tied weight the first stage's."""
    parts: dict[str, dict[int, torch.Tensor]] = {}
    stages: dict[str, int] = {}
    for outcome in sorted(outcomes, key=lambda one: one.place.stage):
        for name, tensor in outcome.weights.items():
            if stages.setdefault(name, outcome.place.stage) == outcome.place.stage:
                parts.setdefault(name, {})[outcome.place.tp_rank] = tensor
    specs = {name: spec for outcome in outcomes for name, spec in outcome.specs.items()}
    return {
        name: without_padding(unshard([by_rank[rank] for rank in sorted(by_rank)], specs[name]), specs[name])
        for name, by_rank in parts.items()
    }


def differing_copies(outcomes: Sequence[RankOutcome]) -> Iterator[tuple[str, str]]:
    """Yield (tensor, between whom) where copies of a weight are not the same bits."""
    seen: dict[tuple[str, ...], bytes] = {}
    told: set[tuple[str, str]] = set()
    for one in sorted(outcomes, key=lambda one: (one.place.stage, one.place.dp_rank, one.place.tp_rank)):
        stage, dp_rank, tp_rank = str(one.place.stage), str(one.place.dp_rank), str(one.place.tp_rank)
        for name, digest in one.digests.items():
            found = [
                ("replicas", ("replica", name, stage, tp_rank), digest),
                ("pipeline stages", ("tie", name, dp_rank, tp_rank), digest),
            ]
            if name in one.shared:
                found.append(("tensor-parallel ranks", ("shared", name, stage, dp_rank), one.shared[name]))
            for between, key, value in found:
                if seen.setdefault(key, value) != value and (name, between) not in told:
                    told.add((name, between))
                    yield name, between
