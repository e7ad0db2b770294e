"""The way in which a run steps the tensors of its model, from the keys of the optimizer. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from trainer.config.schema_optimizer import OptimizerConfig
from trainer.spec.frozen import tensors_named
from trainer.spec.model import Model
from trainer.spec.stepping import Stepping, is_hidden_matrix

MATRICES = "matrices"
"""Word for the matrices of all blocks, beside those of `spec.frozen`."""
HEAD = "head.weight"


def stepping_of(optimizer: OptimizerConfig, model: Model) -> Stepping:
    """Return how a run steps the tensors of a model.

    Args:
        optimizer: keys that `validate` has accepted.
        model: the model.
    """
    factors = dict.fromkeys(model.tensors, 1.0)
    for entry in optimizer.rates:
        word, factor = parse_rate(entry)
        factors |= dict.fromkeys(tensors_rated(model, word), factor)
    decays: dict[str, float] = {}
    if optimizer.mup_base_width is not None:
        narrow = optimizer.mup_base_width / model.hidden_size
        for name in _as_wide(model):
            factors[name] *= narrow
            # A step decays by rate x decay, which is to be that of the base.
            decays[name] = 1 / narrow
    return Stepping(optimizer.kind, _changed(factors), optimizer.ema_decay is not None, _changed(decays))


def _changed(factors: Mapping[str, float]) -> frozenset[tuple[str, float]]:
    return frozenset((name, factor) for name, factor in factors.items() if factor != 1)


def parse_rate(entry: str) -> tuple[str, float]:
    """Return part and factor of an entry of `optimizer.rates`; the factor is NaN if there is none."""
    word, _, text = entry.partition(":")
    try:
        return word.strip(), float(text)
    except ValueError:
        return word.strip(), math.nan


def tensors_rated(model: Model, word: str) -> frozenset[str]:
    """Return the global names of the tensors that a part of `optimizer.rates` names; none if it names nothing."""
    return frozenset(_matrices(model)) if word == MATRICES else tensors_named(model, word)


def _matrices(model: Model) -> Iterator[str]:
    return (name for name, tensor in model.tensors.items() if is_hidden_matrix(tensor))


def _as_wide(model: Model) -> Iterator[str]:
    """Yield the tensors whose fan-in grows with the width: hidden and output weights of arXiv 2203.03466, Table 3.

    A tied head is an embedding: in Table 8, whose output multiplier is `model.logit_scale`, its rate is constant.
    """
    yield from _matrices(model)
    if HEAD in model.tensors:
        yield HEAD
