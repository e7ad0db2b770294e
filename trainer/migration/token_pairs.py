"""The data and the tokenizer of trainers that read Megatron's .bin/.idx pairs, as keys here."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import ConfigError
from trainer.migration.draft import Draft, Why
from trainer.migration.foreign import Setting, Unresolved, shown

_GPT2 = 50257
_KNOWN_FILES = {"gpt2-vocab.json": _GPT2, "20B_tokenizer.json": 50277}
"""File of a public tokenizer -> its ids: those of GPT-2, and of GPT-NeoX-20B and Pythia."""
_KNOWN_KINDS = {"gpt2bpetokenizer": _GPT2}
_DEFAULT_SPLIT = "969, 30, 1"
"""The split of both trainers where nothing is said."""
_LARGEST_BYTES = 64 << 20


def put_files(draft: Draft, train: str, weights: str = "", valid: Sequence[str] = ()) -> bool:
    """Set the files to train on, and those to evaluate with.

    Args:
        draft: the experiment.
        train: setting with the prefixes, which may stand between weights as Megatron writes them.
        weights: setting with the weights, if they stand apart.
        valid: settings with the prefixes to evaluate with.

    Returns:
        whether the files to evaluate with are named apart.
    """
    setting = draft.find(train)
    if setting is None:
        return False
    items = setting.value if isinstance(setting.value, list) else [setting.value]
    paths, shares = _apart(setting, items)
    if weights and (given := draft.find(weights)) is not None:
        held = given.value if isinstance(given.value, list) else [given.value]
        if len(held) != len(paths):
            raise ConfigError(
                f"{given.place}: {given.written} must have a weight for each of {setting.written} ({len(paths)}), but "
                f"has {len(held)}"
            )
        shares = [_weight(given, item) for item in held]
    draft.put("data.source", "megatron", train)
    note = "; ".join(_told(one) for one in paths if isinstance(one, Unresolved))
    files = [_path(one) for one in paths]
    if len(files) == 1:
        draft.put("data.files", files, train, note=note)
    else:
        shares = shares or [1.0] * len(files)
        names = path_names(files)
        blend = {
            name: {"weight": share, "files": [file]} for name, share, file in zip(names, shares, files, strict=True)
        }
        draft.put("data.blend", blend, train, *([weights] if weights else []), note=note)
    return _validation(draft, valid, files, setting)


def _validation(draft: Draft, valid: Sequence[str], files: Sequence[str], train: Setting) -> bool:
    setting = draft.find(*valid) if valid else None
    if setting is None:
        return False
    items = setting.value if isinstance(setting.value, list) else [setting.value]
    paths, _ = _apart(setting, items)
    found = [_path(one) for one in paths]
    if len(files) > 1:
        draft.drop(setting.name, Why.by_hand, "each source of data.blend can have validation_files of its own")
        return False
    if found == list(files):
        draft.drop(
            setting.name,
            Why.no_effect,
            f"they are those of {train.written}, of which data.validation_fraction is held out here",
        )
        return False
    draft.put("data.validation_files", found, setting.name)
    return True


def _apart(setting: Setting, items: Sequence[object]) -> tuple[list[object], list[float]]:
    """Return paths and weights of `path`, `path path` or `weight path weight path`."""
    if not items or any(isinstance(item, (dict, list, bool)) or item in (None, "") for item in items):
        raise ConfigError(f"{setting.place}: {setting.written} must be paths, but is {shown(setting.value)}")
    if len(items) >= 2 and len(items) % 2 == 0 and all(_is_number(item) for item in items[::2]):
        return list(items[1::2]), [_weight(setting, item) for item in items[::2]]
    return list(items), []


def _is_number(item: object) -> bool:
    return isinstance(item, (int, float)) or (
        isinstance(item, str) and re.fullmatch(r"\d*\.?\d+(e-?\d+)?", item) is not None
    )


def _weight(setting: Setting, item: object) -> float:
    try:
        return float(str(item))
    except ValueError:
        raise ConfigError(
            f"{setting.place}: {setting.written} must be weights that are numbers, but has {shown(item)}"
        ) from None


def _path(item: object) -> str:
    """Return a path; one that the script does not say is left to a variable of the environment."""
    if not isinstance(item, Unresolved):
        return str(item)
    if item.variable:
        return f"${{oc.env:{item.variable},{item.variable}}}"
    return "${oc.env:DATA_PATH,DATA_PATH}"


def _told(item: Unresolved) -> str:
    return f"{item.text} is not known: set {item.variable or 'DATA_PATH'} in the environment, or the key"


def path_names(files: Sequence[str]) -> list[str]:
    """Return a name for each source of a blend, made of its path."""
    found: list[str] = []
    for file in files:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(file).name.partition(".")[0]).strip("_-")
        stem = re.sub(r"_(text_)?(document|sentence)$", "", stem) or "source"
        stem = stem if stem[0].isalpha() else f"s_{stem}"
        name, number = stem, 2
        while name in found:
            name, number = f"{stem}_{number}", number + 1
        found.append(name)
    return found


def put_split(draft: Draft, name: str, has_validation: bool) -> None:
    """Set the shares that are held out, of `969, 30, 1` for training, validation and test."""
    setting = draft.find(name)
    text = shown(setting.value) if setting else _DEFAULT_SPLIT
    if setting is not None and isinstance(setting.value, list):
        text = ",".join(map(str, setting.value))
    try:
        shares = [float(part) for part in re.split(r"[,/\s]+", text.strip("[]() ")) if part]
        total = sum(shares)
        train, validation, test = (*(share / total for share in shares), 0.0, 0.0)[:3]
        if not (len(shares) <= 3 and min(shares) >= 0 and 0 < train <= 1):
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise ConfigError(
            f"{setting.place if setting else name}: {name} must be shares such as 969,30,1, but is {text}"
        ) from None
    note = "chosen by a hash of each document; there it is the end of the files"
    if not has_validation:
        draft.put("data.validation_fraction", round(validation, 6), name, note=note)
    if test:
        draft.put("data.test_fraction", round(test, 6), name, note=note)


def settle_vocabulary(draft: Draft, vocab_names: Sequence[str], tokenizer: str, files: Sequence[str]) -> int | None:
    """Set the vocabulary and return its size; None if nobody knows it.

    Args:
        draft: the experiment.
        vocab_names: settings that say the size.
        tokenizer: setting with the kind of tokenizer.
        files: settings with a file of it.
    """
    wanted = draft.value("model.vocab_size")
    if isinstance(wanted, int):
        draft.find(*vocab_names)
        return wanted
    if draft.find(*vocab_names) is not None:
        size = draft.integer(*vocab_names)
        draft.put("model.vocab_size", size, *vocab_names)
        return size
    setting = draft.find(*files) if files else None
    kind = draft.text(tokenizer).lower()
    counted = _counted(setting)
    if counted is not None:
        draft.put("model.vocab_size", counted, *files, origin=f"counted in {shown(setting and setting.value)}")
        return counted
    name = Path(str(setting.value)).name if setting is not None and not setting.is_unresolved else ""
    known = _KNOWN_FILES.get(name) or _KNOWN_KINDS.get(kind)
    if known is None and setting is not None and not kind and "merge_file" in draft.settings:
        known = _GPT2  # a vocabulary with merges is GPT-2's kind, and its own unless a file says otherwise
    if known is None:
        return None
    what = name if name in _KNOWN_FILES else kind or "a vocabulary with merges"
    draft.put(
        "model.vocab_size",
        known,
        tokenizer,
        *files,
        note=f"assumed, the public size of {what}: the file is not here to be counted",
    )
    return known


def _counted(setting: Setting | None) -> int | None:
    """Return the ids of a vocabulary's file, if it is there."""
    if setting is None or not isinstance(setting.value, str):
        return None
    places = [Path(setting.value), Path(setting.place.rpartition(":")[0] or setting.place).parent / setting.value]
    for path in places:
        try:
            if not path.is_file() or path.stat().st_size > _LARGEST_BYTES:
                continue
            tree = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if not isinstance(tree, dict):
            continue
        model = tree.get("model")
        if not isinstance(model, dict):
            return len(tree) if all(isinstance(value, int) for value in tree.values()) else None
        vocab = model.get("vocab")
        added = [one.get("id") for one in tree.get("added_tokens") or [] if isinstance(one, dict)]
        ids = [*(vocab.values() if isinstance(vocab, dict) else range(len(vocab or []))), *added]
        numbers = [one for one in ids if isinstance(one, int)]
        return max(numbers) + 1 if numbers else None
    return None
