"""Reads what wandb wrote offline: a log of records (LevelDB's format, protobuf inside)."""

from __future__ import annotations

import importlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BLOCK, _HEADER = 32768, 7
_FULL, _LAST = 1, 4


@dataclass(frozen=True)
class OfflineRun:
    """One attempt, as `wandb sync` would upload it."""

    project: str
    entity: str
    run_id: str
    name: str
    group: str
    job_type: str
    notes: str
    sweep_id: str
    tags: tuple[str, ...]
    config: dict[str, Any]
    rows: tuple[dict[str, Any], ...]
    exit_code: int | None


def _records(content: bytes) -> Iterator[bytes]:
    place, whole = _HEADER, b""
    while place + _HEADER <= len(content):
        room = _BLOCK - place % _BLOCK
        if room < _HEADER:
            place += room
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        if kind == 0:
            return
        place += _HEADER
        whole += content[place : place + length]
        place += length
        if kind in (_FULL, _LAST):
            yield whole
            whole = b""


def read_offline(path: Path) -> OfflineRun:
    """Return what a file `run-<id>.wandb` holds."""
    # It chooses the classes at run time, by the version of protobuf.
    internal: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    run: Any = None
    rows: list[dict[str, Any]] = []
    code: int | None = None
    for part in _records(path.read_bytes()):
        record: Any = internal.Record()
        record.ParseFromString(part)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
        elif kind == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
        elif kind == "exit":
            code = record.exit.exit_code
    assert run is not None, f"{path} names no run"
    names = (run.project, run.entity, run.run_id, run.display_name, run.run_group, run.job_type, run.notes)
    config = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in run.config.update}
    return OfflineRun(*names, run.sweep_id, tuple(run.tags), config, tuple(rows), code)


def offline_files(folder: Path) -> list[Path]:
    """Return the files of the attempts below a folder `wandb`, oldest first."""
    return sorted(folder.glob("offline-run-*/run-*.wandb"))
