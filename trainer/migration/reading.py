"""Reading of foreign files: which trainer they are of, and what they say. Nothing of them is run."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.config.searched import shown
from trainer.config.yaml_file import YamlFile, read_yaml
from trainer.errors import ConfigError
from trainer.migration.argument_words import settings_of, training_command
from trainer.migration.foreign import Foreign, Setting, Trainer, Unresolved
from trainer.migration.shell_script import Script, read_script
from trainer.migration.shell_values import is_known

_LARGEST_BYTES = 4 << 20
_MOST_VALUES, _DEEPEST = 100_000, 50
_SHELL_ENDINGS = (".sh", ".bash", ".slurm", ".sbatch", ".job", ".qsub")
_ARGUMENT = re.compile(r"(?m)(^|\s)--[a-zA-Z]")
_DEEPSPEED = {
    *("train_batch_size", "train_micro_batch_size_per_gpu", "zero_optimization", "gradient_accumulation_steps"),
    *("bf16", "fp16", "optimizer", "scheduler", "gradient_clipping"),
}
_NEOX = {
    *("num_layers", "hidden_size", "pipe_parallel_size", "model_parallel_size", "train_iters", "lr_decay_iters"),
    *("data_path", "train_data_paths", "vocab_file", "tokenizer_type", "pos_emb", "rotary_pct", "seq_length"),
    *("no_weight_tying", "checkpoint_activations", "eval_interval", "log_interval", "wandb_project", "tensorboard_dir"),
    *("save", "load", "hostfile", "launcher", "deepspeed_slurm", "train_micro_batch_size_per_gpu"),
}


@dataclass(frozen=True)
class _Part:
    """One file."""

    path: Path
    trainer: Trainer
    settings: dict[str, Setting]
    surroundings: dict[str, Setting]
    notes: tuple[str, ...] = ()


def read_foreign(paths: Sequence[str], asked: Trainer | None = None) -> Foreign:
    """Return what files of one trainer say together.

    Args:
        paths: the files; `-` is the standard input.
        asked: the trainer that they are of. None: seen from what they hold.

    Raises:
        ConfigError: a file cannot be read, is of no trainer that is understood, or says what another one says, too.
    """
    parts = [_read(path, asked) for path in paths]
    kinds = {part.trainer for part in parts} - {Trainer.deepspeed}
    if len(kinds) > 1:
        told = " and ".join(f"{shown(part.path)} of {part.trainer.value}" for part in parts)
        raise ConfigError(f"the files must be of one trainer, but are {told}; migrate one after the other")
    trainer = kinds.pop() if kinds else Trainer.deepspeed
    settings: dict[str, Setting] = {}
    surroundings: dict[str, Setting] = {}
    for part in parts:
        _merge(settings, part.settings)
        _merge(surroundings, part.surroundings)
    first = next(part for part in parts if part.trainer is trainer or trainer is Trainer.deepspeed)
    notes = tuple(note for part in parts for note in part.notes)
    return Foreign(trainer, first.path.stem, settings, surroundings, notes)


def _merge(whole: dict[str, Setting], more: Mapping[str, Setting]) -> None:
    for name, setting in more.items():
        if name in whole:
            other = whole[name]
            raise ConfigError(
                f"{setting.place}: {setting.written} must be said once, but {other.place} says it, too; remove one"
            )
        whole[name] = setting


def _read(name: str, asked: Trainer | None) -> _Part:
    path = Path("stdin") if name == "-" else Path(name).expanduser()
    text = sys.stdin.read(_LARGEST_BYTES + 1) if name == "-" else _text(path)
    if len(text) > _LARGEST_BYTES:
        raise ConfigError(f"{shown(path)} must be a config or a script, but is larger than {_LARGEST_BYTES >> 20} MiB")
    if not text.strip():
        raise ConfigError(f"{shown(path)} must be a config or a script, but is empty")
    is_shell = text.startswith("#!") or path.suffix in _SHELL_ENDINGS
    if asked is not Trainer.megatron and not is_shell:
        tree = _tree(path, text)
        if tree is not None:
            return _of_tree(path, tree, asked)
    if asked in (None, Trainer.megatron) and (is_shell or asked or _ARGUMENT.search(text)):
        return _of_script(path, text)
    if asked is not None:
        raise ConfigError(f"{shown(path)} must be a config of {asked.value}, as --from says, but is no mapping of keys")
    raise ConfigError(
        f"{shown(path)} must be a config of gpt-neox or nanotron, a DeepSpeed JSON, or a script or argument line of "
        "Megatron-LM, but is none of them",
        ["--from says which one it is"],
    )


def _text(path: Path) -> str:
    try:
        if path.is_dir():
            raise ConfigError(f"FILE must be a file, but {shown(path)} is a folder; name the files in it")
        with path.open("rb") as file:
            held = file.read(_LARGEST_BYTES + 1)
        return held.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{shown(path)} must be a file that can be read, but: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{shown(path)} must be UTF-8 text, but holds the byte 0x{error.object[error.start]:02x}; is it a config?"
        ) from error


def _tree(path: Path, text: str) -> Mapping[str, object] | None:
    """Return the mapping that a text is in JSON or YAML; None if it is none."""
    if text.lstrip().startswith("{"):
        try:
            return _json(text, shown(path))
        except json.JSONDecodeError:
            pass
    if str(path) == "stdin":
        return _yaml_of_text(text)
    try:
        return _with_lines(read_yaml(path))
    except ConfigError:
        # A script is YAML by chance only; a mapping that is broken is told where it breaks.
        if _ARGUMENT.search(text) and not re.search(r"(?m)^\s*[\"']?[\w-]+[\"']?\s*:(\s|$)", text):
            return None
        raise


@dataclass(frozen=True)
class _At:
    """A value, and its line."""

    value: object
    line: int


def _with_lines(file: YamlFile) -> dict[str, object]:
    found: dict[str, object] = dict(file.tree)
    if file.node is not None:
        for key, node in file.node.value:
            name = str(getattr(key, "value", ""))
            if name in found:
                found[name] = _At(found[name], node.start_mark.line + 1)
    return found


def _yaml_of_text(text: str) -> Mapping[str, object] | None:
    from trainer.config.yaml_file import parse_yaml, said

    try:
        _, tree = parse_yaml(text)
    except yaml.YAMLError as error:
        if _ARGUMENT.search(text):
            return None
        raise ConfigError(f"the standard input{said(error)}") from None
    return tree if isinstance(tree, Mapping) else None


def _json(text: str, name: str) -> dict[str, object]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise ConfigError(f"{name} must have every key once, but has '{key}' again")
            seen[key] = value
        return seen

    try:
        tree = json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise ConfigError(f"{name} must be JSON that can be read, but is nested too deeply") from None
    return tree if isinstance(tree, dict) else {}


def _bare(value: object) -> object:
    return value.value if isinstance(value, _At) else value


def _check_size(value: object, name: str, depth: int = 0) -> int:
    """Return the number of values in a tree, whose aliases count each time.

    Raises:
        ConfigError: there are too many, or they are nested too deeply: an alias may hold itself.
    """
    if depth > _DEEPEST:
        raise ConfigError(f"{name} must be nested at most {_DEEPEST} deep, but is deeper")
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    count = 1
    for one in inner:
        count += _check_size(_bare(one), name, depth + 1)
        if count > _MOST_VALUES:
            raise ConfigError(f"{name} must hold at most {_MOST_VALUES:,} values, but holds more")
    return count


def _of_tree(path: Path, tree: Mapping[str, object], asked: Trainer | None) -> _Part:
    _check_size(tree, shown(path))
    trainer = asked or _recognised(path, {str(key): _bare(value) for key, value in tree.items()})
    name = shown(path)
    settings: dict[str, Setting] = {}
    dashes = trainer is Trainer.gpt_neox
    for key, held in tree.items():
        line = f":{held.line}" if isinstance(held, _At) else ""
        for setting in _settings(str(key), _bare(held), f"{name}{line}", dashes):
            _merge(settings, {setting.name: setting})
    return _Part(path, trainer, settings, {})


def _settings(written: str, value: object, place: str, dashes: bool) -> list[Setting]:
    """Return a value as settings; those of mappings have names with dots."""
    if isinstance(value, Mapping) and value:
        return [one for key, held in value.items() for one in _settings(f"{written}.{key}", held, place, dashes)]
    name = written.lower().replace("-", "_") if dashes else written
    return [Setting(name, value, written, place)]


def _recognised(path: Path, tree: Mapping[str, object]) -> Trainer:
    names = {name.replace("-", "_") for name in tree}
    model = tree.get("model")
    if (isinstance(model, Mapping) and "model_config" in model) or {"parallelism", "tokens"} <= names:
        return Trainer.nanotron
    if names & _NEOX - _DEEPSPEED:
        return Trainer.gpt_neox
    if names & _DEEPSPEED:
        return Trainer.deepspeed
    if isinstance(model, Mapping) and {"hidden_size", "num_layers"} & set(model):
        raise ConfigError(
            f"{shown(path)} must be of another trainer, but is a config of Trident already",
            [f"use it with `trident train config={shown(path)}`"],
        )
    if "architectures" in names or "model_type" in names:
        raise ConfigError(
            f"{shown(path)} must say how a model is trained, but is a Hugging Face config of a model",
            [f"train such a model with model=hf model.path={shown(path.parent)}"],
        )
    some = ", ".join(list(tree)[:4])
    raise ConfigError(
        f"{shown(path)} must be a config of gpt-neox, nanotron or DeepSpeed, but its keys ({some}) are of none of them",
        ["--from says which one it is"],
    )


def _of_script(path: Path, text: str) -> _Part:
    name = shown(path)
    try:
        script = read_script(text, name, os.environ)
    except RecursionError:
        raise ConfigError(f"{name} must be a script that can be read, but is nested too deeply") from None
    launcher, words, line = training_command(script, name)
    place = f"{name}:{line}"
    settings = settings_of(words, script.marks, place)
    deepspeed, notes = _deepspeed_of(script, settings, path)
    return _Part(
        path,
        Trainer.megatron,
        # Arguments win, as they do there.
        {**deepspeed, **settings},
        {**_from_sbatch(text, name), **settings_of(launcher, script.marks, place)},
        (*script.notes, *notes),
    )


def _from_sbatch(text: str, name: str) -> dict[str, Setting]:
    """Return what the header of a Slurm script says about nodes."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r"#SBATCH\s+--(nodes|job-name)[=\s]+(\S+)", line)
        if match:
            plain = f"sbatch_{match[1].replace('-', '_')}"
            found[plain] = Setting(plain, match[2], f"#SBATCH --{match[1]}", f"{name}:{number}")
    return found


def _deepspeed_of(script: Script, settings: Mapping[str, Setting], path: Path) -> tuple[dict[str, Setting], list[str]]:
    """Return the DeepSpeed config that a script writes, or that it names and that is there, and notes."""
    named = settings.get("deepspeed_config")
    for text in script.texts:
        if not text.text.lstrip().startswith("{"):
            continue
        try:
            tree = _json(text.text, f"{shown(path)}:{text.line}")
        except json.JSONDecodeError:
            return {}, [f"{shown(path)}:{text.line}: the text is no JSON that can be read; it is left out"]
        place = f"{shown(path)}:{text.line}"
        found = [one for key, value in tree.items() for one in _settings(key, value, place, dashes=False)]
        return {one.name: _checked(one, script) for one in found}, []
    if named is None or isinstance(named.value, Unresolved):
        return {}, []
    file = Path(str(named.value))
    file = file if file.is_absolute() else path.parent / file
    if not file.is_file():
        return {}, [f"{named.place}: the DeepSpeed config {named.value} is not there, so nothing of it is read"]
    part = _of_tree(file, _json_file(file), Trainer.deepspeed)
    return part.settings, []


def _json_file(file: Path) -> dict[str, object]:
    try:
        return _json(_text(file), shown(file))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{shown(file)}:{error.lineno} must be JSON, but: {error.msg}") from None


def _checked(setting: Setting, script: Script) -> Setting:
    if isinstance(setting.value, str) and not is_known(setting.value):
        return Setting(setting.name, script.marks.value(setting.value), setting.written, setting.place)
    return setting
