from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from trainer.config.keys import build
from trainer.config.schema import TridentConfig
from trainer.migration.draft import Draft, Why
from trainer.migration.migrating import Asked, draft_of, migrate
from trainer.migration.migration_report import Migration
from trainer.migration.reading import read_foreign
from trainer.migration.side_by_side import Compared, compare

Migrate = Callable[..., Migration]


@dataclass(frozen=True)
class Drafted:
    """What foreign files say, before anything is composed."""

    draft: Draft
    config: TridentConfig
    compared: list[Compared]


Described = Callable[..., Drafted]


def numbers(done: Migration | Drafted) -> dict[str, tuple[int | None, int | None]]:
    """Return what is compared: name -> there and here."""
    return {one.name: (one.there, one.here) for one in done.compared}


def lost(done: Migration | Drafted, why: Why) -> set[str]:
    """Return the names of the settings that have no key for a reason."""
    return {one.written for one in done.draft.dropped if one.why is why}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working directory, without variables that a script would see."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATA", "DATA_PATH", "SLURM_NNODES", "SLURM_JOB_ID", "CODE", "SCRATCH_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def written(here: Path, files: Mapping[str, str | Mapping[str, object]]) -> list[str]:
    """Write files, given by name with `__` for the dot, and return their names."""
    for name, text in files.items():
        held = text if isinstance(text, str) else json.dumps(text, indent=1)
        (here / name.replace("__", ".")).write_text(held)
    return [name.replace("__", ".") for name in files]


@pytest.fixture
def migrated(here: Path) -> Migrate:
    """Return a function that writes files and migrates them with words."""

    def run(*words: str, **files: str | Mapping[str, object]) -> Migration:
        return migrate(Asked(written(here, files), words))

    return run


@pytest.fixture
def described(here: Path) -> Described:
    """Return a function that does the same without composing, which takes a fifth of a second."""

    def run(**files: str | Mapping[str, object]) -> Drafted:
        draft, there = draft_of(read_foreign(written(here, files)), {})
        config = build({key: entry.value for key, entry in draft.entries.items()})
        return Drafted(draft, config, compare(there, config))

    return run
