"""`trident checkpoint`: the content of a checkpoint, and a check of every byte of it. No torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from trainer.checkpoint.manifest import Manifest, check_file, check_sizes, read_manifest
from trainer.checkpoint.store import CheckpointStore, find_checkpoint
from trainer.config.places import absolute_path
from trainer.errors import CheckpointError, ConfigError
from trainer.log import report_error, say
from trainer.run_paths import CHECKPOINTS

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def checkpoint_verb(arguments: Sequence[str]) -> int:
    """Run `trident checkpoint <arguments>` and return the exit code.

    Raises:
        ConfigError: the usage is wrong.
        CheckpointError: there is no checkpoint at the path.
    """
    actions: dict[str, Callable[[Path], int]] = {"ls": _ls, "show": _show, "verify": _verify}
    if len(arguments) != 2 or arguments[0] not in actions:
        close = difflib.get_close_matches(arguments[0], actions, n=1) if arguments else []
        raise ConfigError(
            f"usage must be `trident checkpoint ls|show|verify PATH`, but is `{' '.join(['checkpoint', *arguments])}`",
            hints=[f"did you mean `{close[0]}`?"] if close and close[0] != arguments[0] else [],
        )
    return actions[arguments[0]](absolute_path(arguments[1], "PATH"))


def _folders(path: Path) -> list[Path]:
    """Return the checkpoint at `path`, or all of a run folder, oldest first."""
    store = CheckpointStore(path.parent if path.name == CHECKPOINTS else path)
    found = [store.path(step) for step in store.steps()]
    return found or [find_checkpoint(path)[0]]


def _ls(path: Path) -> int:
    say(f"{'step':>10}  {'size':>10}  {'pp x tp x dp':>12}  state")
    for folder in _folders(path):
        try:
            manifest = read_manifest(folder)
            check_sizes(folder, manifest)
        except CheckpointError as error:
            say(f"{folder.name.removeprefix('step_'):>10}  {'':>10}  {'':>12}  damaged: {error}")
            continue
        say(f"{manifest.step:>10}  {_size(_bytes(manifest)):>10}  {_mesh(manifest):>12}  whole")
    return 0


def _show(path: Path) -> int:
    folder, manifest = find_checkpoint(path)
    rows: dict[str, object] = {
        "path": folder,
        "step": manifest.step,
        "tokens seen": f"{manifest.train_state['tokens_seen']:,}",
        "data position": f"{manifest.train_state['position']:,} tokens",
        "sample ledger": manifest.train_state["sample_ledger"] or "-",
        "vocabulary": f"{manifest.vocab_size:,}",
        "probe loss": "-" if manifest.probe_loss is None else f"{manifest.probe_loss:.6g}",
        "saved in": ", ".join(f"{key} {value}" for key, value in manifest.layout.items()),
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        "counters": ", ".join(f"{name} {value:g}" for name, value in manifest.scalars.items()),
        **({} if manifest.base is None else {"adapters of": manifest.base.path}),
        "files": f"{len(manifest.files)}, {_size(_bytes(manifest))}",
    }
    for name, value in rows.items():
        say(f"{name:<14} {value}")
    return 0


def _verify(path: Path) -> int:
    wrong = 0
    for folder in _folders(path):
        problems = list(_problems(folder))
        for problem in problems:
            report_error(problem)
        if not problems:
            say(f"{folder}: every byte is as it was saved")
        wrong += bool(problems)
    return 1 if wrong else 0


def _problems(folder: Path) -> Iterator[CheckpointError]:
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        yield error
        return
    for name in sorted(manifest.files):
        try:
            check_file(folder / name, manifest.files[name])
        except CheckpointError as error:
            yield error


def _bytes(manifest: Manifest) -> int:
    return sum(facts.size_bytes for facts in manifest.files.values())


def _size(count: int) -> str:
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def _mesh(manifest: Manifest) -> str:
    axes = ("pipeline_parallel_size", "tensor_parallel_size", "data_parallel_size")
    return " x ".join(str(manifest.layout.get(axis, "?")) for axis in axes)
