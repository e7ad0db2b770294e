"""The folders that a run writes: whether they can be written, and what their disks have left and can do. No torch."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.config.places import absolute_path
from trainer.doctor.finding import Check, Finding, fail, ok, skip, warn
from trainer.doctor.surroundings import Surroundings
from trainer.doctor.tried_folders import another_folder, try_folder
from trainer.errors import ConfigError, TridentError

_GIB = 1 << 30
_FEW_FILES = 10_000
_NAME = 100
"""Longest name that is taken over into a proposal."""
_CLOCK_S = 5.0
"""Seconds that the clock of a disk may differ: ages of locks are told from it."""


@dataclass(frozen=True)
class _Place:
    """A folder that a run writes."""

    name: str
    text: str
    """The folder, as it was written."""
    key: str
    needed_bytes: int
    """Bytes that should be free."""
    other: str
    """Command or key that puts it elsewhere, with FOLDER for the place."""
    locks: bool = False
    """True if a run holds a lock on a file there."""


def _look(place: _Place, around: Surroundings) -> Iterator[Finding]:
    other = another_folder(around, Path(place.text).name[:_NAME] or "trident")
    fix = place.other.replace("FOLDER", shlex.quote(str(other)))
    try:
        folder = absolute_path(place.text, place.key)
    except ConfigError as error:
        yield fail(place.name, error.problems[0], fix)
        return
    tried = try_folder(folder)
    title = f"{folder}"
    if tried.problem:
        where = "" if tried.folder == folder else f" (nearest folder that exists: {tried.folder})"
        yield fail(place.name, f"{title} cannot be written: {tried.problem}{where}", fix)
        return
    free = f"{tried.free_bytes / _GIB:,.1f} GiB free"
    if tried.free_bytes < place.needed_bytes:
        needed = f"{place.needed_bytes / _GIB:,.1f} GiB"
        yield warn(
            place.name,
            f"{title} has {free}, but {needed} should be",
            f"free some, or let {place.key} be a folder on a larger disk",
        )
    elif tried.free_files is not None and tried.free_files < _FEW_FILES:
        yield warn(place.name, f"{title} has room for {tried.free_files:,} more files only", f"delete some, or {fix}")
    elif place.locks and not tried.can_lock:
        yield warn(
            place.name,
            f"the disk of {title} cannot lock files, so nothing keeps two runs from one folder",
            f"mount it with locks (NFS: without nolock), or {fix}",
        )
    elif abs(tried.clock_s) > _CLOCK_S:
        yield warn(
            place.name,
            f"the clock of the disk of {title} is {tried.clock_s:+.0f} s from this machine's",
            "set both by NTP: `timedatectl set-ntp true`",
        )
    else:
        yield ok(place.name, f"{title}: {free}")


def look_at_run_folder(around: Surroundings) -> Iterator[Finding]:
    """Look at the folder of the run, where there must be room for one checkpoint more than are kept."""
    size = _checkpoint_bytes(around)
    needed = _GIB if size is None else size * (around.config.checkpoint.keep + 1) + (_GIB >> 4)
    yield from _look(
        _Place("run folder", around.config.run_dir, "run_dir", needed, "set run_dir=FOLDER", locks=True), around
    )


def _checkpoint_bytes(around: Surroundings) -> int | None:
    """Return the size of a checkpoint, or None where the model is not known before its data are prepared."""
    from trainer.dry_run import plan_without_data

    try:
        plan = plan_without_data(around.config)
    except TridentError:
        return None
    return int(4 * plan.trained_parameters * (1 + plan.moments_per_parameter))


def look_at_cache(around: Surroundings) -> Iterator[Finding]:
    """Look at the cache of tokens."""
    named = around.config.data.cache_dir
    text = named or around.environ.get("TRIDENT_CACHE") or "~/.cache/trident"
    other = "set data.cache_dir=FOLDER" if named else "`export TRIDENT_CACHE=FOLDER`"
    yield from _look(_Place("token cache", text, "data.cache_dir", _GIB, other, locks=True), around)


def look_at_temporary(around: Surroundings) -> Iterator[Finding]:
    """Look at the folder of temporary files."""
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        yield fail("temporary files", f"{error}", "`export TMPDIR=FOLDER`, with a folder that can be written")
        return
    yield from _look(_Place("temporary files", folder, "TMPDIR", _GIB >> 2, "`export TMPDIR=FOLDER`"), around)


def look_at_hub_cache(around: Surroundings) -> Iterator[Finding]:
    """Look at the folder of what is fetched from the Hugging Face hub, where a run fetches anything."""
    from trainer.doctor.service_checks import hub_words

    if not hub_words(around.config):
        yield skip("hub cache", "nothing is fetched from the Hugging Face hub")
        return
    home = around.environ.get("HF_HOME") or f"{around.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    text = around.environ.get("HF_HUB_CACHE") or home
    yield from _look(_Place("hub cache", text, "HF_HOME", _GIB, "`export HF_HOME=FOLDER`"), around)


def look_at_nvme(around: Surroundings) -> Iterator[Finding]:
    """Look at the folder of offloaded state."""
    if not around.needs_nvme or around.config.zero.nvme_path is None:
        yield skip("NVMe folder", "zero.offload is not nvme")
        return
    path, needed = around.config.zero.nvme_path, (_checkpoint_bytes(around) or _GIB) * 2
    yield from _look(_Place("NVMe folder", path, "zero.nvme_path", needed, "set zero.nvme_path=FOLDER"), around)


CHECKS = (
    Check("run folder", "disks", look_at_run_folder, 60.0),
    Check("token cache", "disks", look_at_cache),
    Check("temporary files", "disks", look_at_temporary),
    Check("hub cache", "disks", look_at_hub_cache),
    Check("NVMe folder", "disks", look_at_nvme),
)
"""Checks of this file."""
