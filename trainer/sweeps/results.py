"""Results of a sweep: `sweep.json`, one record a run; `sweep.yaml`, the sweep itself; and a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.config.keys import did_you_mean
from trainer.errors import ConfigError, Preempted
from trainer.files import write_atomically
from trainer.log import say
from trainer.sweeps.runs import SweptRun
from trainer.sweeps.settings import Direction, SweepSettings

SWEEP_FILE, RESULTS_FILE = "sweep.json", "sweep.yaml"
EVAL_LOSS, TRAIN_LOSS = "eval/loss", "train/loss"
_NUMBERS = (
    (TRAIN_LOSS, ".4f"),
    (EVAL_LOSS, ".4f"),
    ("perf/tokens_per_second", ",.0f"),
    ("memory/peak_allocated_gib", ".2f"),
)
_HEADS = {"perf/tokens_per_second": "tokens/s", "memory/peak_allocated_gib": "GiB"}
Record = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """A run that was started, or had ended before, with its exit code."""

    run: SweptRun
    code: int


class Results:
    """Writes the results so far after every run, and shows them at the end.

    Args:
        folder: the sweep's folder.
        settings: the sweep's settings.
        words: the words of the command line.
    """

    def __init__(self, folder: Path, settings: SweepSettings, words: Sequence[str]) -> None:
        self._folder, self._settings, self._words = folder, settings, list(words)

    def write(self, outcomes: Sequence[Outcome], waiting: Sequence[SweptRun] = ()) -> list[Record]:
        """Write both files and return the records.

        Raises:
            StorageError: the folder cannot be written.
        """
        metric = self.metric(outcomes)
        records = [_record(outcome, self._settings.metric) for outcome in outcomes]
        records += [_named(run) | {"status": "not started"} for run in waiting]
        write_atomically(self._folder / SWEEP_FILE, json.dumps(records, indent=1) + "\n")
        best = self._best(records, metric)
        summary = {
            "sweeper": self._settings.kind.value,
            "words": self._words,
            "metric": metric,
            "direction": self._settings.direction.value,
            "best": None if best is None else {**records[best]["values"], metric: records[best][metric]},
            "best_run_dir": None if best is None else records[best]["run_dir"],
            "runs": {status: sum(record["status"] == status for record in records) for status in _statuses(records)},
        }
        if self._settings.is_search:
            summary |= {"trials": self._settings.trials, "seed": self._settings.seed}
        text = yaml.safe_dump(summary, sort_keys=False, allow_unicode=True, width=10_000)
        write_atomically(self._folder / RESULTS_FILE, text)
        return records

    def metric(self, outcomes: Sequence[Outcome]) -> str:
        """Return the metric to compare runs by: the one asked for, or held-out loss if all finished runs have one."""
        if self._settings.metric is not None:
            return self._settings.metric
        done = [outcome.run for outcome in outcomes if outcome.code == 0]
        return EVAL_LOSS if all(run.last(EVAL_LOSS) is not None for run in done) else TRAIN_LOSS

    def show(self, outcomes: Sequence[Outcome], waiting: Sequence[SweptRun] = ()) -> None:
        """Write the files and print the table."""
        records = self.write(outcomes, waiting)
        metric = self.metric(outcomes)
        numbers = _NUMBERS if metric in dict(_NUMBERS) else ((metric, ".6g"), *_NUMBERS)
        rows = [("run", "status", "step", *(_HEADS.get(name, name) for name, _ in numbers))]
        for record in records:
            shown = [_shown(record.get(name), form) for name, form in numbers]
            rows.append((str(record["point"]), str(record["status"]), str(record.get("step", "")), *shown))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        best = self._best(records, metric)
        for index, row in enumerate(rows):
            cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
            cells += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
            say(f"{'*' if index - 1 == best else ' '} {'  '.join(cells)}".rstrip())
        if best is not None:
            word = "lowest" if self._settings.direction is Direction.minimize else "highest"
            say(f"* {word} {metric}, in {records[best]['run_dir']}")

    def _best(self, records: Sequence[Record], metric: str) -> int | None:
        """Return the index of the finished run with the best metric, or None if fewer than two finished."""
        done = [index for index, record in enumerate(records) if record["status"] == "finished" and metric in record]
        choose = min if self._settings.direction is Direction.minimize else max
        return choose(done, key=lambda index: float(records[index][metric])) if len(done) > 1 else None


def _statuses(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(str(record["status"]) for record in records))


def _named(run: SweptRun) -> Record:
    return {"point": run.point.name, "values": run.point.values, "run_dir": str(run.folder)}


def _record(outcome: Outcome, metric: str | None) -> Record:
    run, code = outcome.run, outcome.code
    summary = run.summary()
    status = summary.get("status", "failed") if code == 0 or summary.get("status") != "finished" else "failed"
    found = _named(run) | {
        "exit_code": code,
        "status": status if code in (0, Preempted.exit_code) else f"failed ({code})",
        "step": summary.get("step", 0),
    }
    final: Mapping[str, Any] = summary.get("final", {})
    found |= {name: final[name] for name, _ in _NUMBERS if name in final}
    # The last row need not be one with an evaluation.
    asked = {name: run.last(name) for name in (EVAL_LOSS, metric) if name is not None}
    return found | {name: value for name, value in asked.items() if value is not None}


def _shown(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, (int, float)) else ""


def check_metric(run: SweptRun, metric: str) -> None:
    """Check before anything starts that a run will log the metric, as far as that can be known.

    Raises:
        ConfigError: it needs evaluations, and there are none.
    """
    train = run.config.train
    if not metric.startswith("eval/") or 0 < train.eval_every <= train.steps:
        return
    found = "0" if train.eval_every == 0 else f"{train.eval_every} and train.steps {train.steps}"
    raise ConfigError(
        f"sweeper.metric ({metric}) needs an evaluation in every run, but train.eval_every is {found}; use "
        f"train.eval_every={train.steps}, or sweeper.metric={TRAIN_LOSS}"
    )


def never_logged(run: SweptRun, metric: str) -> ConfigError:
    """Return the error for a run that finished without the metric."""
    names = run.names()
    guess = did_you_mean(metric, names) or f"; it has {', '.join(names[:12])}{' and more' if len(names) > 12 else ''}"
    return ConfigError(f"sweeper.metric must be a name in metrics.jsonl, but '{metric}' is not in {run.folder}{guess}")
