"""The words of a sweep itself: `sweeper=tpe sweeper.trials=30`. They are no keys of a run. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, get_type_hints

from trainer.config.keys import coerce, did_you_mean, joined
from trainer.errors import ConfigError

SWEEPER = "sweeper"


class Sweeper(Enum):
    """`grid`: every combination, one after the other. `random`, `tpe`: points that Optuna chooses."""

    grid = "grid"
    random = "random"
    tpe = "tpe"


class Direction(Enum):
    """Direction in which a metric is better: smaller or larger."""

    minimize = "minimize"
    maximize = "maximize"


@dataclass(frozen=True)
class SweepSettings:
    """Settings by which points are chosen and judged."""

    kind: Sweeper = Sweeper.grid
    trials: int | None = None
    """Number of points that a search tries, earlier starts included; None with a grid."""
    seed: int = 0
    """Seed of the points that a search tries."""
    metric: str | None = None
    """Name of a metric in metrics.jsonl; its last logged value counts. None: `eval/loss`; a grid without evaluations
    uses `train/loss`."""
    direction: Direction = Direction.minimize

    @property
    def is_search(self) -> bool:
        """True if each point is chosen by the results of those before."""
        return self.kind is not Sweeper.grid


TRIALS = 20
"""Number of points of a search, unless `sweeper.trials` gives another."""
_ELSEWHERE = {
    "hydra/sweeper": SWEEPER,
    "hydra/sweeper/sampler": SWEEPER,
    "hydra.sweeper.n_trials": "sweeper.trials",
    "hydra.sweeper.direction": "sweeper.direction",
    "hydra.sweeper.sampler.seed": "sweeper.seed",
    "sweeper.n_trials": "sweeper.trials",
    "n_trials": "sweeper.trials",
}


def sweep_settings(words: Sequence[str]) -> tuple[SweepSettings, list[str]]:
    """Return the settings, and the words of the runs.

    Raises:
        ConfigError: every word that is no setting of a sweep, or has no effect.
    """
    hints = get_type_hints(SweepSettings)
    names = {SWEEPER: "kind"} | {f"{SWEEPER}.{name}": name for name in hints if name != "kind"}
    given: dict[str, Any] = {}
    rest: list[str] = []
    problems: list[str] = []
    for word in words:
        key, _, value = word.partition("=")
        key = key.lstrip("-+")
        if key in _ELSEWHERE:
            problems.append(f"'{word}' is written {_ELSEWHERE[key]}=... here")
        elif key in names:
            try:
                given[names[key]] = coerce(key, hints[names[key]], value)
            except ConfigError as error:
                problems += error.problems
        elif key.partition(".")[0] == SWEEPER:
            guess = did_you_mean(key, names) or f"; there are {joined(names, 'and')}"
            problems.append(f"there is no setting '{key}' of a sweep{guess}")
        else:
            rest.append(word)
    if problems:
        raise ConfigError(problems)
    return _judged(replace(SweepSettings(), **given), set(given)), rest


def _judged(settings: SweepSettings, given: set[str]) -> SweepSettings:
    if not settings.is_search:
        if without := [f"{SWEEPER}.{name}" for name in ("trials", "seed") if name in given]:
            raise ConfigError(
                f"{joined(without, 'and')} {'have' if len(without) > 1 else 'has'} no effect with {SWEEPER}=grid; add "
                f"{SWEEPER}=tpe, or leave {'them' if len(without) > 1 else 'it'} out"
            )
        return settings
    settings = settings if settings.trials is not None else replace(settings, trials=TRIALS)
    if settings.trials is not None and settings.trials < 1:
        raise ConfigError(f"{SWEEPER}.trials must be at least 1, but is {settings.trials}")
    if settings.seed < 0:
        raise ConfigError(f"{SWEEPER}.seed must be at least 0, but is {settings.seed}")
    if settings.metric == "":
        raise ConfigError(f"{SWEEPER}.metric must be a name of metrics.jsonl such as eval/loss, but is empty")
    return settings


def without_multirun(words: Sequence[str]) -> None:
    """Refuse the words of a sweep in a run that is no sweep.

    Raises:
        ConfigError: there are such words.
    """
    found = [word for word in words if word.lstrip("-+").partition("=")[0].partition(".")[0] == SWEEPER]
    if found:
        raise ConfigError(f"'{found[0]}' needs --multirun, but it is not there; add it, or leave the word out")
