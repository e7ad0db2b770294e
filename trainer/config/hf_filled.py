"""`model=hf model.path=SRC`: the keys of the model that a source's config.json stands for, as plain keys.

What is typed, or named by a file that is merged after the model's, stays. The finished config no longer names the
source, so a run goes on without it; the same command finds the keys in the run's folder if the source is gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from trainer.config.config_file import package
from trainer.config.hf_folder import TOKENIZER_FILE, find_source, read_hf_model, source_name
from trainer.config.keys import KEYS, flatten
from trainer.config.places import absolute_path
from trainer.config.request import Request
from trainer.config.schema import TridentConfig
from trainer.config.searched import find
from trainer.config.written import from_yaml, plain
from trainer.config.yaml_file import read_yaml
from trainer.errors import ConfigError
from trainer.run_paths import RunPaths

CHOICE = "hf"
"""File of the group model that stands for a source."""
FILE = f"model/{CHOICE}"
PATH = "model.path"
_TOKENIZER = ("tokenizer.kind", "tokenizer.path", "tokenizer.vocab_size", "tokenizer.eos_token")
_LEFT = (
    *("model.name", PATH, "model.vocab_pad_multiple", "model.recompute", "model.fused_loss"),
    *("model.dropout", "model.attention_dropout"),
)
"""Keys that no source decides: they say how a run computes and trains the model."""
_WITHOUT_TOKENIZER = ("synthetic", "megatron", "tokens")
"""Sources of data that are ids already."""


def own_keys(request: Request, order: Sequence[str]) -> set[str]:
    """Return the keys that the words set, and those that a file names which is merged after the model's.

    Args:
        request: the words.
        order: config paths of the files in the order in which they are merged.
    """
    own = set(request.values)
    own |= set(_TOKENIZER) if "tokenizer" in request.choices else set()
    behind = order[len(order) - order[::-1].index(FILE) :] if FILE in order else ()
    for path in behind:
        group = path.rpartition("/")[0].partition("/")[0]
        hit = find(request.places, path)
        # There is always a file of this group; whoever means it names it.
        if hit is not None and group != "tokenizer":
            file = read_yaml(hit[0])
            own |= set(_named(file.tree, package(file, group)))
    return own


def _named(tree: Mapping[str, object], prefix: str) -> Iterator[str]:
    for name, value in tree.items():
        key = f"{prefix}.{name}" if prefix else name
        if key in KEYS:
            yield key
        elif isinstance(value, Mapping):
            yield from _named(value, key)


def filled(values: Mapping[str, object], own: Collection[str], is_asked: bool) -> tuple[dict[str, object], list[str]]:
    """Return the values with the source's model in place of `model.path`, and lines that say what was taken.

    Args:
        values: dotted key -> plain value of every key.
        own: keys that keep their values.
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
    if not is_asked:
        raise ConfigError(
            f"{PATH} needs model=hf, which takes the other keys of the model from there, but the model is another; "
            f"write model=hf {PATH}={source}"
        )
    run = RunPaths(absolute_path(str(values["run_dir"]), "run_dir"))
    chosen = {key for key, value in _plain(TridentConfig()).items() if key in _TOKENIZER and values[key] != value}
    takes_tokenizer = not chosen | (set(own) & set(_TOKENIZER)) and values["data.source"] not in _WITHOUT_TOKENIZER
    try:
        found = read_hf_model(find_source(str(source), PATH, fetch_weights=False), PATH)
    except ConfigError:
        if not run.config.is_file() or Path(str(source)).exists():
            raise
        return _from_run(values, own, run, takes_tokenizer)
    taken = {f"model.{key}": plain(value) for key, value in found.values.items()}
    told = [f"model.* is {found.family.architecture} of {source}"]
    if takes_tokenizer:
        if not found.has_tokenizer:
            raise ConfigError(
                f"{PATH} must hold {TOKENIZER_FILE}, but {source} does not, and its model knows the ids of its own "
                "tokenizer only; set tokenizer.path",
                hints=[
                    "transformers makes the file: AutoTokenizer.from_pretrained(SRC).save_pretrained(SRC)",
                    "tokenizer=bpe trains a tokenizer on the data; imported weights know nothing of its ids",
                ],
            )
        taken |= {"tokenizer.kind": "pretrained", "tokenizer.path": str(source), "tokenizer.allow_unused_ids": True}
        told.append(f"tokenizer.path={source}")
    name = source_name(str(source), found.folder) if values["model.name"] == CHOICE else values["model.name"]
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
