"""`model=hf model.path=SRC`: the keys of the model that a source's config.json stands for, as plain keys.

What is typed, or set by another file, stays. The finished config no longer names the source, so a run goes on without
it; the same command finds the keys in the run's folder if the source is gone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from trainer.config.hf_folder import find_source, read_hf_model
from trainer.config.keys import KEYS, flatten
from trainer.config.places import absolute_path
from trainer.config.schema import TridentConfig
from trainer.config.written import from_yaml, plain
from trainer.errors import ConfigError
from trainer.run_paths import RunPaths

CHOICE = "hf"
"""File of the group model that stands for a source."""
PATH = "model.path"
_TOKENIZER = ("tokenizer.kind", "tokenizer.path", "tokenizer.vocab_size", "tokenizer.eos_token")
_LEFT = ("model.name", PATH)


def filled(values: Mapping[str, object], typed: Collection[str], is_asked: bool) -> tuple[dict[str, object], list[str]]:
    """Return the values with the source's model in place of `model.path`, and lines that say what was taken.

    Args:
        values: dotted key -> plain value of every key.
        typed: keys that the command line sets.
        is_asked: true for model=hf, which needs a source.

    Raises:
        ConfigError: there is no source where one is needed, or it cannot be used.
    """
    source = values[PATH]
    if source is None:
        if is_asked:
            raise ConfigError(
                "model=hf needs model.path: a folder with a Hugging Face model, or its name; for example "
                "model.path=HuggingFaceTB/SmolLM2-135M"
            )
        return dict(values), []
    own = {key for key, value in _plain(TridentConfig()).items() if values[key] != value} | set(typed)
    run = RunPaths(absolute_path(str(values["run_dir"]), "run_dir"))
    takes_tokenizer = not own & set(_TOKENIZER) and values["data.source"] not in ("synthetic", "megatron")
    try:
        found = read_hf_model(find_source(str(source), PATH, fetch_weights=False), PATH)
    except ConfigError:
        if not run.config.is_file() or Path(str(source)).exists():
            raise
        return _from_run(values, own, run, takes_tokenizer)
    taken = {f"model.{key}": plain(value) for key, value in found.values.items()}
    told = [f"model.* is {found.family.architecture} of {source}"]
    unread = found.family.unknown(found.config)
    if unread:
        told.append(f"nobody reads {', '.join(unread)} of its config.json, not transformers either")
    if takes_tokenizer and found.has_tokenizer:
        taken |= {"tokenizer.kind": "pretrained", "tokenizer.path": str(source), "tokenizer.allow_unused_ids": True}
        told.append(f"tokenizer.path={source}")
    name = Path(str(source)).name if values["model.name"] == CHOICE else values["model.name"]
    return {**_merged(values, taken, own), "model.name": name}, told


def _from_run(
    values: Mapping[str, object], own: Collection[str], run: RunPaths, takes_tokenizer: bool
) -> tuple[dict[str, object], list[str]]:
    saved = _plain(from_yaml(run.config.read_text(encoding="utf-8")))
    taken = {key: value for key, value in saved.items() if key.startswith("model.")}
    if takes_tokenizer:
        taken |= {key: value for key, value in saved.items() if key.startswith("tokenizer.")}
        if run.tokenizer.is_dir() and not Path(str(saved["tokenizer.path"])).exists():
            taken["tokenizer.path"] = str(run.tokenizer)
    name = saved["model.name"] if values["model.name"] == CHOICE else values["model.name"]
    found = {**_merged(values, taken, own), "model.name": name}
    return found, [f"model.* is that of {run.config}, since {values[PATH]} is not there any more"]


def _merged(values: Mapping[str, object], taken: Mapping[str, object], own: Collection[str]) -> dict[str, object]:
    kept = {key: value for key, value in taken.items() if key in KEYS and key not in own and key not in _LEFT}
    return {**values, **kept, PATH: None}


def _plain(config: TridentConfig) -> dict[str, object]:
    return {key: plain(value) for key, value in flatten(config).items()}
