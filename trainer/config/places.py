"""Keys that hold paths, and paths as people write them. No torch.

The place of data does not say what they are: the same tokens may be under another path tomorrow, or on another node.
"""

from __future__ import annotations

import os
from pathlib import Path

from trainer.config.schema import DataSource, TridentConfig
from trainer.errors import ConfigError

BY_CONTENT = (
    *(
        "data.files",
        "data.validation_files",
        "data.hub_path",
        "data.blend",
        "data.blend_schedule",
        "data.chat_template",
    ),
    *("tokenizer.path", "tokenizer.eos_token"),
)
"""Keys that two configs of one run may differ in as long as the tokens are the same, which is checked on the tokens."""
PER_NODE = (
    "data.files",
    "data.validation_files",
    "data.hub_path",
    "tokenizer.path",
    "data.cache_dir",
    "zero.nvme_path",
)
"""Keys in which the nodes of one run may differ: places on a disk of their own. The tokens there must be the same."""
PATHS = (
    *PER_NODE,
    "run_dir",
    "model.path",
    "data.chat_template",
    "checkpoint.resume",
    "checkpoint.init_from",
    "logging.wandb_dir",
    "eval.tasks_include_path",
)
"""Every key that takes a path."""
PLAIN = "plain"
"""Value of `data.chat_template` that is no path but names `PLAIN_TEMPLATE` of `data/chat_template.py`."""
_NAME_BYTES = 255
_PATH_BYTES = 4096 - 512
"""Longest path that Linux takes, less room for the files of a run."""
_SOURCE_KEYS = {
    DataSource.files: "data.files",
    DataSource.megatron: "data.files",
    DataSource.tokens: "data.files",
    DataSource.hub: "data.hub_path",
}


def local_path(text: str, key: str) -> str:
    """Return a path with `~` and `~user` replaced by home folders. Every key and option that takes a path comes here.

    A name that exists as it is written, with its `~`, is that name. `./~x` is a name that begins with `~`.

    Args:
        text: the path as the user wrote it.
        key: the key or option that it was written for; the error names it.

    Raises:
        ConfigError: there is no such home folder, or it is no path at all.
    """
    if "\0" in text:
        raise ConfigError(f"{key} must be a path, but {text!r} holds a NUL character")
    if not text.startswith("~"):
        return text
    name = text.partition("/")[0]
    # With an empty HOME the path would begin at the root of the disk.
    expanded = text if name == "~" and os.environ.get("HOME") == "" else os.path.expanduser(text)
    if not expanded.startswith("~"):
        return expanded
    if os.path.lexists(text):
        return text
    whose = "this user has no home folder" if name == "~" else f"there is no home folder of a user {name[1:]!r}"
    raise ConfigError(
        f"{key} must be a path that can be found, but is {text!r} and {whose}; write the path in full",
        hints=[f"a name that begins with ~ is written ./{text}"],
    )


def absolute_path(text: str, key: str) -> Path:
    """Return the path as `local_path` reads it, made absolute.

    Raises:
        ConfigError: as `local_path`; or it is empty, or too long for a file system, together with what is put below it.
    """
    if not text.strip():
        raise ConfigError(f"{key} must be a path, but is empty; use . for the current folder")
    path = Path(local_path(text, key)).absolute()
    longest = max((len(os.fsencode(name)) for name in path.parts), default=0)
    whole = len(os.fsencode(path))
    if longest > _NAME_BYTES:
        found = f"one has {longest}"
        raise ConfigError(f"{key} must be a path of names of at most {_NAME_BYTES} bytes, but {found}; shorten it")
    if whole > _PATH_BYTES:
        raise ConfigError(f"{key} must be a path of at most {_PATH_BYTES} bytes, but has {whole}; shorten it")
    return path


def source_key(config: TridentConfig) -> str:
    """Return the key that says which data a run reads."""
    return _SOURCE_KEYS.get(config.data.source, "data.source")


def unwritable(name: str, key: str) -> str | None:
    """Return why a file cannot be made at the place that a key names; None if it can, as far as is known before."""
    folder = absolute_path(name, key).parent
    if not folder.is_dir():
        return f"{key} must be a file in a folder that exists, but {folder} does not; make it, or change {key}"
    if not os.access(folder, os.W_OK):
        return f"{key} must be a file in a folder that can be written, but {folder} cannot; change {key}"
    return None
