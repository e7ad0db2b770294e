"""One model family: its config keys and its tensors, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from trainer.errors import ConfigError
from trainer.families.fields import REQUIRED, Entry, Listed, Values, head_dim_of
from trainer.families.layouts import Link
from trainer.families.unread_keys import is_harmless

COMMON: tuple[Listed, ...] = tuple(
    map(
        Listed,
        (
            *("architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "_name_or_path"),
            *("use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"),
            *("output_hidden_states", "output_attentions", "return_dict", "chunk_size_feed_forward"),
            *("is_encoder_decoder", "id2label", "label2id", "num_labels", "problem_type", "finetuning_task"),
            *("task_specific_params", "prefix", "unk_token_id", "transformers.js_config", "auto_map"),
            *("cache_implementation", "gradient_checkpointing", "attn_implementation", "_attn_implementation"),
            *("classifier_dropout", "is_decoder", "initializer_factor", "n_ctx", "pretraining_tp"),
        ),
    )
)
"""Keys that any config.json may have and that do not change what a model computes."""


@dataclass(frozen=True)
class Dims:
    """Sizes and wiring that links depend on."""

    num_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_dims: int
    wiring: str
    """Wiring of a block, on which the names of its norms depend in some families."""

    @classmethod
    def of(cls, ours: Values) -> Dims:
        """Return the sizes of a model whose nulls are resolved."""
        heads = int(str(ours["num_attention_heads"]))
        head_dim = head_dim_of(ours)
        kv_heads = ours.get("num_key_value_heads") or heads
        rope_dims = int(str(ours.get("rope_dims") or head_dim))
        return cls(heads, int(str(kv_heads)), head_dim, rope_dims, str(ours.get("wiring", "pre")))


@dataclass(frozen=True)
class Family:
    """An architecture of transformers: its config keys and its tensors."""

    name: str
    """Name for people: "LLaMA 1 to 3"."""
    architecture: str
    """Class in transformers."""
    model_type: str
    entries: tuple[Entry, ...]
    """All keys of its config.json that say what the model computes."""
    links: Callable[[Dims], tuple[Link, ...]]
    """Every tensor that any model of the family may have, per block with `{layer}` in its names."""
    prefix: str = ""
    """First part of their names, which old files leave out."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Older or other name of one of their keys -> its name."""
    tensors_renamed: Mapping[str, str] = field(default_factory=dict)
    """Other name of one of their tensors -> its name in `links`."""
    ignores: tuple[str, ...] = ("*.rotary_emb.inv_freq",)
    """Patterns of names of buffers in old files, which follow from the config."""
    examples: str = ""
    """Models of the family, for the documentation."""

    @property
    def defaults(self) -> Values:
        """All of their keys, each with the default of transformers' class."""
        found: dict[str, object] = {}
        for entry in (*COMMON, *self.entries):
            found |= entry.defaults
        return found

    def read(self, config: Values) -> dict[str, object]:
        """Return the keys of `model.*` for a config.json.

        Raises:
            ConfigError: each key that is missing, that nobody reads, or whose value the model has no option for.
        """
        theirs = {**self.defaults, **{self.renamed.get(key, key): value for key, value in config.items()}}
        problems = [f"{key} must be there, but is missing" for key, value in theirs.items() if value == REQUIRED]
        problems += [
            f"{key} must not be there, since transformers' {self.architecture} does not read it and nothing is known "
            f"of it, but is {config[key]!r}; if it changes nothing, take it out of the file"
            for key in self.unread(config)
        ]
        if problems:
            raise ConfigError(problems)
        found: dict[str, object] = {}
        for entry in self.entries:
            try:
                found |= entry.read(theirs)
            except ConfigError as error:
                problems += error.problems
            except (TypeError, ValueError, ArithmeticError, AssertionError, AttributeError, LookupError) as error:
                keys = ", ".join(f"{key}={theirs[key]!r}" for key in entry.defaults)
                problems.append(f"{keys} must be as transformers writes it, but cannot be read: {error!r}")
        if problems:
            raise ConfigError(problems)
        return found

    def unread(self, config: Values) -> list[str]:
        """Return the keys of a config.json that neither the family nor transformers' class reads, but harmless ones."""
        known = self.defaults
        return [
            key
            for key, value in config.items()
            if self.renamed.get(key, key) not in known and not is_harmless(key, value)
        ]

    def write(self, ours: Values) -> dict[str, object]:
        """Return a config.json for a model whose nulls are resolved, as far as the family can say it."""
        found: dict[str, object] = {"architectures": [self.architecture], "model_type": self.model_type}
        for entry in self.entries:
            found |= entry.write(ours)
        return found

    def links_of(self, ours: Values, tensors: Sequence[str]) -> dict[str, Link]:
        """Return the link of each tensor that a model has, by its name.

        Args:
            ours: `model.*`, its nulls resolved.
            tensors: names of the model's tensors.

        Raises:
            ConfigError: the family has no tensor of a name.
        """
        found: dict[str, Link] = {}
        for link in self.links(Dims.of(ours)):
            layers = range(int(str(ours["num_layers"]))) if "{layer}" in link.ours else range(1)
            found |= {one.ours: one for one in map(link.of_layer, layers)}
        missing = [name for name in tensors if name not in found]
        if missing:
            raise ConfigError(f"{self.architecture} must have a tensor for {missing[0]}, but has none")
        return {name: found[name] for name in tensors}

    @property
    def head(self) -> str:
        """Name of the head's weight, which files of models with tied embeddings may hold as well."""
        sizes = Dims(num_heads=1, num_key_value_heads=1, head_dim=2, rope_dims=2, wiring="pre")
        return next(link.theirs[0] for link in self.links(sizes) if link.ours == "head.weight")

    def is_ignored(self, tensor: str) -> bool:
        """Return whether a tensor of a file is a buffer that follows from the config."""
        return any(fnmatchcase(tensor, pattern) for pattern in self.ignores)
