"""Rules about the parts of a model that are not trained."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.keys import did_you_mean, joined
from trainer.config.models import make_model
from trainer.config.rules_common import Case, Rule
from trainer.spec.frozen import BLOCKS, KINDS, LAYERS, frozen_tensors, layer_numbers, tensors_named
from trainer.spec.model import Model


def frozen_parts(case: Case) -> Iterator[str]:
    """Every word names tensors of the model, and something is left to train."""
    words = case.config.train.frozen
    if not words:
        return
    model = make_model(case.config.model, 1)
    unknown = [word for word in words if not tensors_named(model, word)]
    for word in unknown:
        yield f"train.frozen must name parts of the model, but {word!r} {_no_part(model, word)}"
    if not unknown and len(frozen_tensors(model, words)) == len(model.tensors):
        yield f"train.frozen must leave something to train, but names all {len(model.tensors)} tensors of the model"


def _no_part(model: Model, word: str) -> str:
    """Return why a word names nothing, and what it may mean."""
    first, _, rest = word.partition(".")
    last = len(model.blocks) - 1
    if first in (LAYERS, BLOCKS) and rest:
        numbers = layer_numbers(rest.partition(".")[0])
        if numbers is None or numbers.stop > last + 1:
            return f"names none: layers are {LAYERS}.0 to {LAYERS}.{last}, and some of them {LAYERS}.0-{last}"
    if word == "head" and model.head.tied:
        return "is the embedding, model.tied_embeddings being true; use embedding"
    if word in KINDS or word in {layer.name for layer in model.layers}:
        return "names nothing: this model has no such tensors; leave it out"
    known = _words(model)
    return f"names none{did_you_mean(word, [*known, *_ending_as(model, word)]) or f'; use {joined(known)}'}"


def _words(model: Model) -> list[str]:
    """Return the words for whole parts of this model."""
    layers = dict.fromkeys(name.split(".")[0].replace(BLOCKS, LAYERS) for name in model.tensors)
    return [*layers, *(word for word in KINDS if tensors_named(model, word))]


def _ending_as(model: Model, word: str) -> Iterator[str]:
    """Yield the word itself if only its beginning is not that of layers, and names with the layers that it names."""
    first, _, rest = word.partition(".")
    if rest and tensors_named(model, f"{LAYERS}.{rest}"):
        yield f"{LAYERS}.{rest}"
    for name in model.tensors if rest else ():
        parts = name.split(".")
        if parts[0] == BLOCKS and first in (LAYERS, BLOCKS):
            parts[:2] = first, rest.partition(".")[0]
        yield from (".".join(parts[:count]) for count in range(2, len(parts) + 1))


RULES: tuple[Rule, ...] = (frozen_parts,)
