"""A search: Optuna proposes a point, a run tries it, and the result decides what is proposed next. No torch.

The study is a file in the sweep's folder. A proposal depends only on the seed, the number of the trial and the results
so far, so a search that was stopped and started again tries the points that it would have tried anyway.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config.compose import compose
from trainer.config.multirun import Dimension, Point, search_space
from trainer.config.schema import TridentConfig
from trainer.errors import ConfigError, NumericsError, StorageError
from trainer.files import storage_faults
from trainer.log import say
from trainer.sweeps.process import train, was_asked_to_stop
from trainer.sweeps.results import EVAL_LOSS, Outcome, Results, check_metric, never_logged
from trainer.sweeps.runs import SweptRun, check_same_sweep, claimed, folder_names, sweep_folder, wrong_with
from trainer.sweeps.settings import Sweeper, SweepSettings

if TYPE_CHECKING:
    import optuna

STUDY_FILE = "study.journal"
_STUDY = "sweep"
_REFUSED = 2


def search(
    of_runs: Sequence[str],
    settings: SweepSettings,
    words: Sequence[str],
    gpus: int | None,
    is_dry: bool,
    fail_fast: bool,
) -> int:
    """Try `sweeper.trials` points and return 0 if any of them finished, otherwise the first exit code that is not 0.

    Args:
        of_runs: settings of the runs, some with several values or a range.
        settings: the sweep's settings.
        words: all of them, for the record.
        gpus: CUDA devices of this machine; None in a dry run.
        is_dry: say what would be searched instead.
        fail_fast: stop when a run fails.

    Raises:
        ConfigError: nothing can be searched, no point can run, or a run did not log the metric.
        StorageError: the study cannot be written.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            f"sweeper={settings.kind.value} needs the package optuna, but it is not installed",
            hints=["pip install 'trident-trainer[search]'", "or leave sweeper out: --multirun alone tries every value"],
        )
    fixed, dimensions = search_space(of_runs)
    first = _probed(fixed, dimensions, gpus)
    metric = settings.metric or EVAL_LOSS
    check_metric(first, metric)
    if is_dry:
        _describe(fixed, dimensions, settings, metric)
        return 0
    folder = first.folder.parent
    with claimed(folder):
        return _Search(fixed, dimensions, settings, folder, gpus).run(words, metric, fail_fast)


def _point(fixed: Sequence[str], swept: Sequence[str]) -> Point:
    return Point((*fixed, *swept), tuple(swept))


def _probed(fixed: Sequence[str], dimensions: Sequence[Dimension], gpus: int | None) -> SweptRun:
    """Return the run at the lower ends, after checking that a problem there is not a problem everywhere."""
    found: list[tuple[Point, list[str]]] = []
    composed: list[tuple[Point, TridentConfig]] = []
    for end in (0, 1):
        point = _point(fixed, [dimension.ends[end] for dimension in dimensions])
        try:
            config, problems = wrong_with(compose(point.words), gpus)
            sweep_folder([point], [config])
        except ConfigError as error:
            found.append((point, list(error.problems)))
            continue
        found.append((point, problems))
        composed.append((point, config))
    common = [problem for problem in found[0][1] if problem in found[1][1]]
    if common:
        raise ConfigError(common)
    if not composed:
        raise ConfigError([f"{problem} (in {point.name})" for point, problems in found for problem in problems])
    point, config = composed[0]
    folder = sweep_folder([point for point, _ in composed], [config for _, config in composed])
    return SweptRun(point, folder / folder_names([point])[0], config)


def _describe(fixed: Sequence[str], dimensions: Sequence[Dimension], settings: SweepSettings, metric: str) -> None:
    say(f"# {settings.trials} points by sweeper={settings.kind.value}, to {settings.direction.value} {metric}")
    for word in fixed:
        say(word)
    for each in dimensions:
        step = f" in steps of {each.step:g}" if each.step else ""
        numbers = f"{each.low:g} to {each.high:g}{step}{', by its logarithm' if each.is_log else ''}"
        say(f"{each.key}: {' or '.join(each.choices) if each.choices else numbers}")


class _Search:
    def __init__(
        self,
        fixed: Sequence[str],
        dimensions: Sequence[Dimension],
        settings: SweepSettings,
        folder: Path,
        gpus: int | None,
    ) -> None:
        self._fixed, self._dimensions, self._settings = fixed, dimensions, settings
        self._folder, self._gpus = folder, gpus
        self._study = self._open()

    def _open(self) -> optuna.Study:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        path = self._folder / STUDY_FILE
        with storage_faults(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            storage = JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))
            study = optuna.create_study(
                storage=storage, study_name=_STUDY, direction=self._settings.direction.value, load_if_exists=True
            )
            told = {"fixed": list(self._fixed), "space": [repr(each) for each in self._dimensions]}
            earlier = study.user_attrs.get("told")
            if earlier is None:
                study.set_user_attr("told", told)
        if (
            study.direction.name.lower() != self._settings.direction.value
            or (earlier or told)["space"] != told["space"]
        ):
            raise ConfigError(
                f"run_dir must hold this search, but {self._folder} holds one of other ranges or another direction",
                hints=["set run_dir to another folder", "more trials of the same search: sweeper.trials"],
            )
        return study

    def run(self, words: Sequence[str], metric: str, fail_fast: bool) -> int:
        results = Results(self._folder, self._settings, words)
        outcomes: list[Outcome] = []
        total = self._settings.trials or 0
        for number in range(total):
            trial = self._trial(number)
            run = self._run_of(trial)
            where = f" (in {run.folder})" if isinstance(run, SweptRun) else ""
            name = run.point.name if isinstance(run, SweptRun) else run[0].name
            say(f"trial {number + 1} of {total}: {name}{where}")
            if not isinstance(run, SweptRun):
                say(f"left out: {run[1]}")
                self._tell(trial, None, _REFUSED)
                continue
            code = self._ended(trial, run)
            outcomes.append(Outcome(run, code))
            results.write(outcomes)
            if was_asked_to_stop(code):
                break
            value = run.last(metric) if code == 0 else None
            if code == 0 and value is None:
                raise never_logged(run, metric)
            self._tell(trial, value, code)
            if code == StorageError.exit_code or (fail_fast and code):
                break
        if not outcomes:
            raise ConfigError(f"a point of the search must be able to run, but none of {total} could; see above")
        results.show(outcomes)
        if was_asked_to_stop(outcomes[-1].code):
            say("stopped as asked; the same command goes on from there")
            return outcomes[-1].code
        codes = [outcome.code for outcome in outcomes]
        return 0 if 0 in codes and not (fail_fast and codes[-1]) else next(code for code in codes if code)

    def _trial(self, number: int) -> optuna.Trial:
        """Return the trial of this number: the one that an earlier start left, or a new one."""
        import optuna

        digest = hashlib.blake2b(f"{self._settings.seed}/{number}".encode(), digest_size=4).digest()
        seed, samplers = int.from_bytes(digest, "big"), optuna.samplers
        is_random = self._settings.kind is Sweeper.random
        self._study.sampler = samplers.RandomSampler(seed) if is_random else samplers.TPESampler(seed=seed)
        with storage_faults(self._folder / STUDY_FILE):
            known = self._study.get_trials(deepcopy=False)
            trial = self._study.ask() if number >= len(known) else optuna.Trial(self._study, known[number]._trial_id)
            # A trial that was interrupted while it was made lacks some.
            for each in self._dimensions:
                if each.key not in trial.params:
                    _choose(trial, each)
        return trial

    def _run_of(self, trial: optuna.Trial) -> SweptRun | tuple[Point, str]:
        """Return the run of a trial, or the point and the reason why it cannot run."""
        swept = [each.word(trial.params[each.key]) for each in self._dimensions]
        point = _point(self._fixed, swept)
        try:
            config, problems = wrong_with(compose(point.words), self._gpus)
        except ConfigError as error:
            return point, error.problems[0]
        if problems:
            return point, problems[0]
        run = SweptRun(point, self._folder / folder_names([point])[0], config)
        check_same_sweep(run)
        return run

    def _ended(self, trial: optuna.Trial, run: SweptRun) -> int:
        """Train unless that was done before, and return the exit code."""
        if run.has_finished():
            say("has finished before")
            return 0
        failed = trial.user_attrs.get("exit_code") if self._is_told(trial) else None
        if failed:
            say(f"has failed before (exit code {failed})")
            return int(failed)
        return train(run)

    def _is_told(self, trial: optuna.Trial) -> bool:
        return bool(self._study.get_trials(deepcopy=False)[trial.number].state.is_finished())

    def _tell(self, trial: optuna.Trial, value: float | None, code: int) -> None:
        """Tell the study how a trial ended. A point that cannot be trained counts as bad, other failures not at all."""
        from optuna.trial import TrialState

        if self._is_told(trial):
            return
        with storage_faults(self._folder / STUDY_FILE):
            trial.set_user_attr("exit_code", code)
            if value is not None:
                self._study.tell(trial.number, value)
                return
            is_bad = code in (_REFUSED, NumericsError.exit_code)
            self._study.tell(trial.number, state=TrialState.PRUNED if is_bad else TrialState.FAIL)


def _choose(trial: optuna.Trial, each: Dimension) -> None:
    if each.choices:
        trial.suggest_categorical(each.key, each.choices)
    elif each.is_whole:
        trial.suggest_int(each.key, int(each.low), int(each.high), log=each.is_log, step=int(each.step or 1))
    else:
        trial.suggest_float(each.key, each.low, each.high, log=each.is_log, step=each.step)
