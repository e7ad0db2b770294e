"""The tensors of a model that a user's word names: `embedding`, `layers.0-3`, `norms`. No torch.

`frozen_tensors` is the one place from which a plan knows what is not trained: what freezes more adds to its names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from trainer.spec.model import Model

LAYERS = "layers"
"""Word for all blocks. Some of them are `layers.3` or `layers.0-3`, a part of them `layers.0-3.attention`."""
BLOCKS = "blocks"
"""Beginning of the global names of all blocks, which means the same as a word."""
_NUMBERS = re.compile(r"(\d+)(?:-(\d+))?")


def _is_norm(name: str) -> bool:
    return any(part.endswith("norm") for part in name.split("."))


KINDS: Mapping[str, Callable[[str], bool]] = {
    "norms": _is_norm,
    "biases": lambda name: name.endswith(".bias"),
    "attention": lambda name: "attention" in name.split("."),
    "mlp": lambda name: "mlp" in name.split("."),
}
"""Word for tensors all over the model -> whether the tensor of a global name is one of them."""


def frozen_tensors(model: Model, words: Iterable[str]) -> frozenset[str]:
    """Return the global names of the tensors that a run does not train.

    These are the ones that words name, and beside adapters the model's own.
    """
    own = frozenset(model.base_tensors) if model.has_adapters else frozenset[str]()
    return own.union(*(tensors_named(model, word) for word in words))


def tensors_named(model: Model, word: str) -> frozenset[str]:
    """Return the global names of the tensors that a word names; none if it names nothing in this model.

    A word is one of `KINDS`, layers by their numbers, or the beginning of global names in whole parts: `embedding`,
    `final_norm`, `blocks.1.mlp.down`.
    """
    is_one = KINDS.get(word) or (lambda name: _is_below(name, word, len(model.blocks)))
    return frozenset(filter(is_one, model.tensors))


def layer_numbers(text: str) -> range | None:
    """Return the layers that `3` or `0-3` names, or None if it names none."""
    numbers = _NUMBERS.fullmatch(text)
    return None if numbers is None else range(int(numbers[1]), int(numbers[2] or numbers[1]) + 1) or None


def _is_below(name: str, word: str, num_layers: int) -> bool:
    """Return whether a global name begins with the parts of a word, in which one may be a range of layers."""
    parts, wanted = name.split("."), word.split(".")
    if wanted[0] == LAYERS:
        wanted[0] = BLOCKS
    if wanted[0] == BLOCKS == parts[0] and len(wanted) > 1:
        numbers = layer_numbers(wanted[1])
        if numbers is None or int(parts[1]) not in numbers or numbers.stop > num_layers:
            return False
        wanted[1] = parts[1]
    return parts[: len(wanted)] == wanted
