"""The file in which `trident plan --calibrate` leaves what it measured of a machine, and its reading. No torch.

One file a device: `<folder of the cache>/profiles/<device>.json`, an object with `kind`, `format`, `device`, `date`,
`versions`, `machine` and `profile`, whose constants are objects of `value` and `source`.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from trainer.errors import ConfigError
from trainer.files import write_atomically
from trainer.machine import usable_cores
from trainer.planner.constants import Constant
from trainer.planner.profile import Profile
from trainer.versions import versions

KIND = "trident device profile"
FORMAT = 2
AGAIN = "measure again with trident plan --calibrate"
CPU = "CPU"
_SOFTWARE = ("trident-trainer", "torch", "deepspeed")
_FASTEST = 1e17
"""FLOP/s, and bytes a second, that no device of today reaches."""
_SHARE = (1e-3, 1e3)
_LATENCY = (0.0, 10.0)
_RANGES: Mapping[str, tuple[float, float]] = {
    "peak_flops": (1e6, _FASTEST),
    "attention_flops": (1e5, _FASTEST),
    "memory_bandwidth": (1e6, _FASTEST),
    "host_bandwidth": (1e6, _FASTEST),
    "rate": (1e3, _FASTEST),
    "uncached_rate": (1e3, 1e30),
    "shard_bytes": (0.0, 1e6),
    "half_bytes": (0.0, 1e12),
    "cached_bytes": (0.0, 1e12),
    "overlap": (0.0, 1.0),
    "tensor_overlap": (0.0, 1.0),
    "gemm_half_width": (0.0, 1e6),
    "score_passes": (0.0, 1e3),
    "error": (0.0, 10.0),
    "memory_error": (0.0, 10.0),
}
"""Smallest and largest sensible value of a constant, by the name of its field; `_s` is a time, others are shares."""


@dataclass(frozen=True)
class Calibration:
    """A profile with the circumstances of its measurement."""

    device: str
    """Name in the device table, or `CPU`."""
    date: str
    """Day of the measurement, as 2026-11-29."""
    versions: Mapping[str, str]
    """Versions of the software, by package."""
    machine: Mapping[str, str]
    """Facts by which the machine is known again, such as its processor and its number of cores."""
    profile: Profile


@dataclass(frozen=True)
class FoundProfile:
    """The search for this machine's calibration."""

    calibration: Calibration | None
    """None: there is none that can be used here."""
    note: str | None
    """A sentence for people: why a file that is there is not used, or should be made anew."""


def profile_path(device: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of a device's calibration, below $TRIDENT_CACHE or ~/.cache/trident."""
    root = Path(environ.get("TRIDENT_CACHE") or "~/.cache/trident").expanduser()
    return root / "profiles" / f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', device)}.json"


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write the file whole, or not at all.

    Raises:
        ConfigError: a constant is absurd; nothing is written.
        StorageError: the disk refuses it.
    """
    _check_range(path, calibration.profile)
    body = {
        "kind": KIND,
        "format": FORMAT,
        "device": calibration.device,
        "date": calibration.date,
        "versions": dict(calibration.versions),
        "machine": dict(calibration.machine),
        "profile": _plain(calibration.profile),
    }
    write_atomically(path, json.dumps(body, indent=1) + "\n", "TRIDENT_CACHE")


def read_calibration(path: Path) -> Calibration:
    """Return a calibration.

    Raises:
        ConfigError: the file cannot be read, is none of these, is of another format, lacks a number or has an absurd
            one; in one line.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} must be a readable device profile, but: {error.strerror}; {AGAIN}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} must be a device profile in JSON, but is not JSON; {AGAIN}") from error
    if not isinstance(body, dict) or body.get("kind") != KIND:
        raise ConfigError(f"{path} must be a device profile of trident plan --calibrate, but is something else")
    if body.get("format") != FORMAT:
        raise ConfigError(
            f"{path} must be a device profile of format {FORMAT}, but is of {body.get('format')}; {AGAIN}"
        )
    try:
        found = Calibration(
            device=_text(body, "device"),
            date=date.fromisoformat(_text(body, "date")).isoformat(),
            versions=_texts(body, "versions"),
            machine=_texts(body, "machine"),
            profile=_read(Profile, body.get("profile"), "profile"),
        )
    except (_Damaged, ValueError) as error:
        raise ConfigError(f"{path} must be a whole device profile, but {error}; {AGAIN}") from error
    _check_range(path, found.profile)
    return found


def circumstances(device: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[dict[str, str], dict[str, str]]:
    """Return the versions of the software and the facts of this machine that stand in a calibration.

    Args:
        device: name in the device table, or `CPU`, whose machines differ by processor and number of cores.
        cpuinfo: the system's description of its processors.
    """
    found = versions()
    software = {name: found[name] for name in _SOFTWARE if name in found}
    if device != CPU:
        return software, {}
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return software, {"processor": names[0] if names else platform.machine(), "cores": str(usable_cores())}


def find_calibration(device: str, environ: Mapping[str, str] = os.environ) -> FoundProfile:
    """Return the calibration of this machine; one that cannot be used is told and left alone.

    One of another machine is not used. One of another version of the software is used, and told.

    Args:
        device: name in the device table, or `CPU`.
        environ: variables of the process.
    """
    software, machine = circumstances(device)
    path = profile_path(device, environ)
    if not path.exists():
        return FoundProfile(None, None)
    try:
        found = read_calibration(path)
    except ConfigError as error:
        return FoundProfile(None, f"{error}; planned without it")
    if found.device != device:
        return FoundProfile(
            None, f"{path} was measured on {found.device}, not on {device}; planned without it; {AGAIN}"
        )
    for name in sorted({*machine, *found.machine}):
        before, now = found.machine.get(name), machine.get(name)
        if before != now:
            why = f"{path} was measured on another machine ({name}: {before}, here {now})"
            return FoundProfile(None, f"{why}; planned without it; {AGAIN}")
    changed = [name for name in sorted({*software, *found.versions}) if found.versions.get(name) != software.get(name)]
    if changed:
        what = ", ".join(f"{name} {found.versions.get(name)}, now {software.get(name)}" for name in changed)
        return FoundProfile(found, f"{path} was measured with {what}; {AGAIN}")
    return FoundProfile(found, None)


class _Damaged(Exception):
    """A part of a file is missing or no such thing as it should be; the text goes on after `but`."""


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(one) for key, one in value.items()}
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value


def _read(wanted: Any, found: Any, place: str) -> Any:
    """Return the value of a type as `_plain` wrote it: constants, what is made of them, texts, mappings, or null."""
    origin = get_origin(wanted)
    if origin in (Union, types.UnionType):
        inner = next(one for one in get_args(wanted) if one is not type(None))
        return None if found is None else _read(inner, found, place)
    if wanted is str:
        if not isinstance(found, str):
            raise _Damaged(f"{place} is no text")
        return found
    if wanted in (float, int):
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            raise _Damaged(f"{place} is no finite number")
        return wanted(found)
    if not isinstance(found, dict):
        raise _Damaged(f"{place} is missing" if found is None else f"{place} is no object")
    if origin is not None:
        kind, of = get_args(wanted)
        return {_key(kind, name, place): _read(of, one, f"{place}.{name}") for name, one in found.items()}
    return _read_fields(wanted, found, place)


def _read_fields(wanted: Any, found: Mapping[str, Any], place: str) -> Any:
    hints = get_type_hints(wanted)
    values = {}
    for field in fields(wanted):
        if field.name in found:
            values[field.name] = _read(hints[field.name], found[field.name], f"{place}.{field.name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise _Damaged(f"{place}.{field.name} is missing")
    unknown = sorted(set(found) - {field.name for field in fields(wanted)})
    if unknown:
        raise _Damaged(f"{place}.{unknown[0]} is unknown")
    return wanted(**values)


def _key(kind: Any, name: str, place: str) -> Any:
    try:
        return int(name) if kind is int else kind(name)
    except ValueError:
        raise _Damaged(f"{place} has an unknown {name}") from None


def _text(body: Mapping[str, Any], name: str) -> str:
    return str(_read(str, body.get(name), name))


def _texts(body: Mapping[str, Any], name: str) -> dict[str, str]:
    found: dict[str, str] = _read(Mapping[str, str], body.get(name), name)
    return found


def _constants(value: Any, name: str, place: str) -> Iterator[tuple[str, str, float]]:
    """Yield the constants below a value: name of the field that holds them, place, value."""
    if isinstance(value, Constant):
        yield name, place, value.value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _constants(one, name, f"{place}.{_plain(key)}")
    elif is_dataclass(value):
        for field in fields(value):
            yield from _constants(getattr(value, field.name), field.name, f"{place}.{field.name}".lstrip("."))


def _check_range(path: Path, profile: Profile) -> None:
    for name, place, value in _constants(profile, "", ""):
        low, high = _RANGES.get(name, _LATENCY if name.endswith("_s") else _SHARE)
        if not low <= value <= high:
            raise ConfigError(f"{path} must have a {place} from {low:g} to {high:g}, but it is {value:g}; {AGAIN}")
