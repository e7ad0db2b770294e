"""A Hugging Face model as a source: where its files are, what its config.json says, and the model that it is. No torch.

A source is a folder, or the name of a model on the hub, whose files are fetched once and then kept by its library.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.config.keys import build
from trainer.config.models import flat_keys, resolved, whole_scaling
from trainer.config.places import absolute_path, local_path
from trainer.config.rules_common import Case
from trainer.config.rules_ranges import RULES
from trainer.config.schema import ModelConfig, TridentConfig
from trainer.config.written import plain
from trainer.errors import ConfigError, first_line
from trainer.families.family import Family
from trainer.families.fields import Values
from trainer.families.registry import family_of

HF_CONFIG = "config.json"
TOKENIZER_FILE = "tokenizer.json"
GGUF = ".gguf"
_HUB_NAME = re.compile(r"\w([\w.-]*\w)?/\w([\w.-]*\w)?")
_SMALL = ("*.json", "*.model", "*.txt", "*.jinja")
_LARGE = ("model*.safetensors", "*.safetensors", "pytorch_model*.bin")
"""Names of files with weights; a repository may hold them twice, so the first kind that is there is fetched alone."""
_WEIGHTS = (".safetensors", ".bin")
_LARGEST_KEPT = 64 << 20
"""Largest file that is kept with a checkpoint, in bytes; tokenizers are some megabytes."""


@dataclass(frozen=True)
class HFModel:
    """A model as its config.json describes it."""

    folder: Path
    config: Mapping[str, object]
    family: Family
    model: ModelConfig

    @property
    def values(self) -> dict[str, object]:
        """`model.*` as plain values, its nulls resolved: what the family's links and keys are made from."""
        return plain_values(self.model)

    @property
    def has_tokenizer(self) -> bool:
        """True if there is a tokenizer that can be loaded."""
        return (self.folder / TOKENIZER_FILE).is_file()


def kept_files(folder: Path) -> list[Path]:
    """Return everything small beside the weights: config, tokenizer, chat template, generation config."""
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(
        path
        for path in files
        if path.suffix in (".json", ".model", ".txt", ".jinja", ".tiktoken")
        and not path.name.endswith(".index.json")
        and path.stat().st_size <= _LARGEST_KEPT
    )


def plain_values(model: ModelConfig) -> dict[str, object]:
    """Return `model.*` as plain values without the group's name, its nulls resolved."""
    whole = replace(resolved(model), rope_scaling=whole_scaling(model))
    return {key: plain(value) for key, value in flat_keys(whole).items()}


def model_of(values: Values) -> ModelConfig:
    """Return the model of plain values; what is left out has its default.

    Raises:
        ConfigError: as `build`.
    """
    return build({f"model.{key}": value for key, value in values.items()}).model


def is_hf_folder(path: Path) -> bool:
    """Return whether a folder holds a Hugging Face model, and is not the folder of a run or of a checkpoint."""
    return (
        (path / HF_CONFIG).is_file() and not (path / "manifest.json").exists() and not (path / "config.yaml").exists()
    )


def is_hub_name(text: str) -> bool:
    """Return whether a text can only be a model's name on the hub: owner/name, and nothing of that name is here."""
    return _HUB_NAME.fullmatch(text) is not None and not os.path.lexists(text.partition("/")[0])


def source_name(text: str, folder: Path) -> str:
    """Return the name of the model that a text names and a folder holds; that of a fetched one is a hash."""
    return text.rpartition("/")[2] if is_hub_name(text) else folder.name


def hf_identity(folder: Path) -> str:
    """Return what identifies the model in a folder: its config.json, and names and sizes of its weights.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        sizes = sorted((path.name, path.stat().st_size) for path in folder.iterdir() if path.suffix in _WEIGHTS)
        content = (folder / HF_CONFIG).read_bytes() + json.dumps(sizes).encode()
    except OSError as error:
        raise ConfigError(f"{folder} must be readable, but: {error}") from error
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def find_source(text: str, key: str, fetch_weights: bool = True) -> Path:
    """Return the folder of a source.

    Args:
        text: a folder, or the name of a model on the hub.
        key: the key or word that it was written for; errors name it.
        fetch_weights: fetch the weights too if it is on the hub.

    Raises:
        ConfigError: there is none.
    """
    local = local_path(text, key)
    if _is_named_gguf(Path(text)):
        raise _is_gguf(text, key)
    if os.path.isdir(local):
        folder = absolute_path(text, key)
        if not (folder / HF_CONFIG).is_file():
            if any(map(_is_named_gguf, folder.iterdir())):
                raise _is_gguf(text, key)
            held = "a run of Trident, not of Hugging Face" if (folder / "checkpoints").is_dir() else f"no {HF_CONFIG}"
            raise ConfigError(f"{key} must be a folder with {HF_CONFIG} and weights, but {text} holds {held}")
        return folder
    if os.path.exists(local) or not is_hub_name(text) or text.startswith(("~", ".", "/")):
        what = "is a file" if os.path.exists(local) else "does not exist"
        raise ConfigError(f"{key} must be a folder with {HF_CONFIG}, or a Hugging Face name, but {text} {what}")
    return _from_hub(text, key, fetch_weights)


def find_gguf(text: str, key: str) -> Path | None:
    """Return the GGUF file that a text names, by itself or as the only one of its folder; None if it names none.

    Raises:
        ConfigError: it names several, or one that is not there.
    """
    local = Path(local_path(text, key))
    if _is_named_gguf(local) and not local.is_dir():
        if not local.is_file():
            raise ConfigError(f"{key} must be a file that exists, but {text} does not")
        return absolute_path(text, key)
    if not local.is_dir() or (local / HF_CONFIG).is_file():
        return None
    found = sorted(path for path in absolute_path(text, key).iterdir() if _is_named_gguf(path))
    if len(found) > 1:
        raise ConfigError(f"{key} must name one GGUF file, but {text} holds {', '.join(path.name for path in found)}")
    return found[0] if found else None


def _is_named_gguf(path: Path) -> bool:
    return path.suffix.lower() == GGUF


def _is_gguf(text: str, key: str) -> ConfigError:
    """Return the refusal of a file whose numbers must become others before anything can compute with them."""
    return ConfigError(
        f"{key} must be a folder with safetensors, but {text} is GGUF; first: trident import {text} DST, and then take "
        "that folder"
    )


def _from_hub(name: str, key: str, fetch_weights: bool) -> Path:
    import huggingface_hub

    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_SMALL)))
        for pattern in _LARGE if fetch_weights else ():
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=[pattern]))
            if any(folder.glob(pattern)):
                break
        return folder
    # The library raises whatever its transport raises.
    except Exception as error:
        raise ConfigError(
            f"{key} must be a folder or the name of a Hugging Face model, but {name} cannot be fetched: "
            f"{first_line(error)}",
            hints=["there is no such folder here; check the name and the network, or give a local folder"],
        ) from error


def read_hf_config(folder: Path, key: str) -> dict[str, object]:
    """Return the content of a folder's config.json.

    Raises:
        ConfigError: it cannot be read, or its weights are quantised.
    """
    path = folder / HF_CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{key} must hold a {HF_CONFIG} that can be read, but {path}: {first_line(error)}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must be a JSON object, but is a {type(raw).__name__}")
    if raw.get("quantization_config"):
        method = raw["quantization_config"]
        method = method.get("quant_method", method) if isinstance(method, dict) else method
        raise ConfigError(f"{path} must be of weights that are not quantised, but they are ({method}); use the others")
    return raw


def _check_ranges(model: ModelConfig) -> None:
    """Check that the numbers can be computed with at all; whoever trains asks the other rules."""
    case = Case(TridentConfig(model=model), None, None)
    wrong = [line for rule in RULES for line in rule(case) if line.startswith("model.")]
    if wrong:
        raise ConfigError(wrong)


def read_hf_model(folder: Path, key: str) -> HFModel:
    """Return the model in a folder, as its config.json describes it.

    Raises:
        ConfigError: the architecture is unknown, or a key's value has no counterpart.
    """
    config = read_hf_config(folder, key)
    try:
        family = family_of(config)
        model = model_of(family.read(config))
        _check_ranges(model)
        return HFModel(folder, config, family, model)
    except ConfigError as error:
        raise ConfigError([f"{folder / HF_CONFIG}: {line}" for line in error.problems], error.hints) from error
