"""`trident train --multirun`: several runs, one after the other, each in its own folder and process. No torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from trainer.config.compose import compose
from trainer.config.multirun import Point, points, quoted
from trainer.config.validate import fill_machine, problems
from trainer.errors import ConfigError, Preempted
from trainer.files import write_atomically
from trainer.launcher.environment import find_world, gpu_count
from trainer.launcher.start import INTERRUPTED, python_environment
from trainer.log import say
from trainer.machine import usable_cores
from trainer.run_folder import RunFolder

SWEEP_FILE = "sweep.json"
_LONGEST_NAME = 150
"""Most file systems allow 255 bytes in a name."""
_HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@dataclass(frozen=True)
class _Run:
    """A point with its place."""

    point: Point
    folder: Path
    steps: int

    @property
    def words(self) -> list[str]:
        """Overrides of the run, its folder included."""
        return [
            *(word for word in self.point.words if not word.startswith("run_dir=")),
            f"run_dir={quoted(str(self.folder))}",
        ]

    def summary(self) -> dict[str, Any]:
        """Return what the run left in its summary.json; nothing if there is none."""
        try:
            found = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def has_finished(self) -> bool:
        """Return whether an earlier sweep did all of its steps."""
        found = self.summary()
        return found.get("status") == "finished" and int(found.get("step", 0)) >= self.steps


def multirun(words: Sequence[str], is_dry: bool = False, fail_fast: bool = False) -> int:
    """Check every point, then train one after the other; return the first exit code that is not 0.

    Args:
        words: settings, some with several values.
        is_dry: print the commands instead.
        fail_fast: stop when a run fails.

    Raises:
        ConfigError: the sweep, or a point of it, cannot run. Nothing has been started then.
    """
    if find_world(os.environ) is not None:
        raise ConfigError(
            "--multirun starts runs itself, so it cannot be one of the ranks that a launcher started; leave the "
            "launcher out, or see launch/slurm_sweep.sh for one Slurm job a point"
        )
    runs = _checked(points(words), is_dry)
    if is_dry:
        for number, run in enumerate(runs, 1):
            command = " ".join(map(_for_a_shell, ["trident", "train", *run.words]))
            say(f"# {number}/{len(runs)} {run.point.name}\n{command}")
        return 0
    codes = _train_all(runs, fail_fast)
    _report(runs, codes)
    if Preempted.exit_code in codes:
        say("stopped as asked; the same command goes on from there")
    return next((code for code in codes if code), 0)


def _for_a_shell(word: str) -> str:
    # The quotes of Hydra's grammar are easier to read inside double ones.
    plain = "'" in word and not re.search(r'["$`\\!]', word)
    return f'"{word}"' if plain else shlex.quote(word)


def _checked(found: list[Point], dry: bool) -> list[_Run]:
    gpus = None if dry else gpu_count(os.environ)
    wrong: dict[str, list[str]] = {}
    configs = []
    for point in found:
        try:
            config = compose(point.words)
        except ConfigError as error:
            for problem in error.problems:
                wrong.setdefault(problem, []).append(point.name)
            continue
        if gpus is not None:
            config = fill_machine(config, gpus, usable_cores())
        configs.append(config)
        for problem in problems(config, None, gpus):
            wrong.setdefault(problem, []).append(point.name)
    if wrong:
        raise ConfigError([_told(problem, names, len(found)) for problem, names in wrong.items()])
    root = _root(found, RunFolder.of(configs[0]), configs[0].name)
    names = _folder_names(found)
    return [
        _Run(point, root / name, config.train.steps) for point, name, config in zip(found, names, configs, strict=True)
    ]


def _told(problem: str, names: list[str], total: int) -> str:
    if len(names) == total:
        return problem
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{problem} (in {names[0]}{others})"


def _root(found: list[Point], given: RunFolder, name: str) -> Path:
    """Return the folder that holds the runs' folders."""
    swept = {word.partition("=")[0] for word in found[0].swept}
    if "run_dir" in swept:
        raise ConfigError("run_dir must be one folder for the sweep, but has several values; each run gets its own")
    if not any(word.startswith("run_dir=") for word in found[0].words):
        return Path("sweeps", "default" if "name" in swept else name).absolute()
    if given.config.is_file():
        raise ConfigError(
            f"run_dir must be a folder for the runs of the sweep, but {given.path} holds a run; change run_dir"
        )
    return given.path


def _folder_names(found: list[Point]) -> list[str]:
    names = []
    for point in found:
        name = re.sub(r"[^\w.,=+-]", "_", point.name)
        if len(name) > _LONGEST_NAME or name in names:
            digest = hashlib.blake2b(point.name.encode(), digest_size=4).hexdigest()
            name = f"{name[:_LONGEST_NAME]}-{digest}"
        names.append(name)
    return names


def _train_all(runs: Sequence[_Run], fail_fast: bool) -> list[int]:
    """Return the exit code of every run that was started or had finished before."""
    codes: list[int] = []
    for number, run in enumerate(runs, 1):
        say(f"run {number} of {len(runs)}: {run.point.name} (in {run.folder})")
        if run.has_finished():
            say("has finished before")
            codes.append(0)
            continue
        codes.append(_train(run))
        was_asked = codes[-1] in (Preempted.exit_code, INTERRUPTED)
        if was_asked or (fail_fast and codes[-1]):
            break
    return codes


def _train(run: _Run) -> int:
    child = subprocess.Popen([sys.executable, "-m", "trainer", "train", *run.words], env=python_environment())

    def hand_on(number: int, _: FrameType | None) -> None:
        if child.poll() is None:
            child.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in _HANDED_ON}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code


def _report(runs: Sequence[_Run], codes: Sequence[int]) -> None:
    """Write sweep.json and show a table of how the runs ended."""
    records = [_record(run, code) for run, code in zip(runs, codes, strict=False)]
    records += [{"point": run.point.name, "status": "not started"} for run in runs[len(codes) :]]
    write_atomically(runs[0].folder.parent / SWEEP_FILE, json.dumps(records, indent=1) + "\n")
    heads = ("run", "status", "step", "train/loss", "eval/loss", "tokens/s", "GiB")
    rows = [
        (
            str(record["point"]),
            str(record["status"]),
            str(record.get("step", "")),
            *(_shown(record.get(name), form) for name, form in _NUMBERS),
        )
        for record in records
    ]
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    best = _best(records)
    for index, row in enumerate((heads, *rows)):
        cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        cells += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        say(f"{'*' if index - 1 == best else ' '} {'  '.join(cells)}".rstrip())
    if best is not None:
        say(f"* lowest {'eval/loss' if 'eval/loss' in records[best] else 'train/loss'}, in {records[best]['run_dir']}")


_NUMBERS = (
    ("train/loss", ".4f"),
    ("eval/loss", ".4f"),
    ("perf/tokens_per_second", ",.0f"),
    ("memory/peak_allocated_gib", ".2f"),
)


def _record(run: _Run, code: int) -> dict[str, Any]:
    summary = run.summary()
    status = summary.get("status", "failed") if code == 0 or summary.get("status") != "finished" else "failed"
    found = {
        "point": run.point.name,
        "run_dir": str(run.folder),
        "exit_code": code,
        "status": status if code in (0, Preempted.exit_code) else f"failed ({code})",
        "step": summary.get("step", 0),
    }
    final = summary.get("final", {})
    return found | {name: final[name] for name, _ in _NUMBERS if name in final}


def _shown(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, (int, float)) else ""


def _best(records: Sequence[dict[str, Any]]) -> int | None:
    """Return the index of the finished run with the lowest loss, of several: held-out, where all were evaluated."""
    done = [index for index, record in enumerate(records) if record["status"] == "finished"]
    name = "eval/loss" if all("eval/loss" in records[index] for index in done) else "train/loss"
    done = [index for index in done if name in records[index]]
    return min(done, key=lambda index: records[index][name]) if len(done) > 1 else None
