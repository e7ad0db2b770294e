"""Paths at the cursor: files, folders, runs and their checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from trainer.config.places import local_path
from trainer.errors import ConfigError
from trainer.run_paths import CHECKPOINTS, RunPaths
from trainer.verbs.found import Found

_MOST = 500
"""Largest number of candidates, more than anyone reads; a folder of shards may hold a million files."""


def paths(typed: str, endings: tuple[str, ...] = ()) -> Iterator[Found]:
    """Yield the files and folders that a path can become; if there are endings, only files that have one of them."""
    entries = _entries(typed)
    files = [(text, path) for text, path in entries if not path.is_dir()]
    right = [(text, path) for text, path in files if not endings or path.name.lower().endswith(endings)]
    yield from (Found(f"{text}/", is_open=True) for text, path in entries if path.is_dir())
    yield from (Found(text) for text, _ in right or files)


def folders(typed: str) -> Iterator[Found]:
    """Yield the folders that a path can become."""
    yield from (Found(f"{text}/", is_open=True) for text, path in _entries(typed) if path.is_dir())


def runs(typed: str) -> Iterator[Found]:
    """Yield run folders, the newest first, and their checkpoints; also other folders that lead to run folders."""
    if not typed:
        yield from (Found(str(path), "a run") for path in _runs_below(Path("runs"), Path()))
    head = typed.rpartition("/")[0]
    here = _folder(head)
    if head and here is not None and _is_run(here):
        store = here / CHECKPOINTS
        steps = sorted(_steps(store), key=lambda path: int(path.name.removeprefix("step_")), reverse=True)
        yield from (Found(f"{head}/{CHECKPOINTS}/{path.name}", "a checkpoint") for path in steps)
        return
    for text, path in _entries(typed):
        if not path.is_dir():
            continue
        if path.name.startswith("step_"):
            yield Found(text, "a checkpoint")
        elif _is_run(path):
            yield Found(text, "a run")
            if typed == text:
                yield Found(f"{text}/", "its checkpoints", is_open=True)
        else:
            yield Found(f"{text}/", is_open=True)


def _runs_below(*parents: Path) -> list[Path]:
    found = [path for parent in parents if parent.is_dir() for path in parent.iterdir() if _is_run(path)]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[:_MOST]


def _is_run(folder: Path) -> bool:
    return RunPaths(folder).is_run


def _steps(store: Path) -> list[Path]:
    return [path for path in store.iterdir() if path.name.removeprefix("step_").isdigit()]


def _folder(head: str) -> Path | None:
    try:
        return Path(local_path(head, "the word")) if head else Path()
    except ConfigError:
        return None


def _entries(typed: str) -> list[tuple[str, Path]]:
    """Return the entries that begin as typed: each as it would be typed, and its path. Hidden ones only after a dot."""
    head, slash, name = typed.rpartition("/")
    if typed.startswith("~") and not slash:
        return [(typed, Path(local_path(typed, "the word")))] if local_path(typed, "the word") != typed else []
    folder = Path("/") if slash and not head else _folder(head)
    if folder is None or not folder.is_dir():
        return []
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            hidden = entry.name.startswith(".") and not name.startswith(".")
            if entry.name.startswith(name) and not hidden:
                found.append((f"{head}{slash}{entry.name}", folder / entry.name))
    return sorted(found)[:_MOST]
