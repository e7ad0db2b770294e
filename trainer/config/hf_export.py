"""The family that can say a model, and its config.json. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from trainer.config.hf_folder import model_of, plain_values
from trainer.config.key_text import shown_value
from trainer.config.models import changed_keys, make_model
from trainer.config.schema import ModelConfig
from trainer.errors import ConfigError
from trainer.families.family import Family
from trainer.families.fields import Values
from trainer.families.registry import FAMILIES
from trainer.spec.model import Model


@dataclass(frozen=True)
class Expressed:
    """A model in the words of a family."""

    family: Family
    values: Values
    """`model.*` as plain values, its nulls resolved."""
    model: Model
    config: Mapping[str, object]
    """Content of its config.json."""


def express(model: ModelConfig, vocab_size: int, kept: Values) -> Expressed:
    """Return a model in the words of the first family that can say it; that of `kept` goes first.

    Args:
        model: the model.
        vocab_size: number of token ids.
        kept: the config.json that the weights came with; empty: there is none.

    Raises:
        ConfigError: none can; the text names the nearest one and what it lacks.
    """
    model = replace(model, vocab_size=vocab_size, path=None)
    spec, values = make_model(model, vocab_size), plain_values(model)
    misses: list[tuple[int, str]] = []
    named = kept.get("architectures")
    first = sorted(FAMILIES, key=lambda family: [family.architecture] != named)
    for family in first:
        config = family.write(values)
        try:
            found = model_of(family.read(config))
            if make_model(found, vocab_size) == spec:
                family.links_of(values, list(spec.tensors))
                return Expressed(family, values, spec, config)
            changed = changed_keys(model, found)
            lacks = ", ".join(f"model.{key}={shown_value(mine)}" for key, (mine, _) in changed.items())
            misses.append((len(changed), f"{family.architecture}, which has no {lacks}"))
        except ConfigError as error:
            misses.append((len(error.problems), f"{family.architecture}: {error.problems[0]}"))
    nearest = min(misses, key=lambda miss: miss[0])[1]
    raise ConfigError(
        f"the model must be one that a family of transformers can say, but none can; the nearest is {nearest}",
        hints=["docs/models.md lists the families and their options"],
    )


def exported_config(said: Expressed, dtype: str, kept: Values, end: int | None) -> dict[str, object]:
    """Return the whole config.json.

    Args:
        said: the model.
        dtype: number format of the weights, as torch spells it.
        kept: the config.json that the weights came with; empty: there is none.
        end: id of the token that ends a text, if the run has a tokenizer.
    """
    dtypes = {"dtype": dtype, "torch_dtype": dtype}
    if kept and _says_the_same(said, kept):
        # Both spellings of rotary positions and of the format: other versions read the other one.
        return {**said.config, **kept, **dtypes}
    ids = {key: kept.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if not kept:
        ids["eos_token_id"] = end
    return {**said.config, **ids, **dtypes}


def _says_the_same(said: Expressed, kept: Values) -> bool:
    try:
        theirs = model_of(said.family.read(kept))
    except ConfigError:
        return False
    return theirs.vocab_size == said.model.vocab_size and make_model(theirs, said.model.vocab_size) == said.model
