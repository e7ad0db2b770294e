"""`--multirun sweeper=tpe`: runs are a script, the search is real."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.storages.journal import JournalFileBackend

from tests.cli.conftest import Answer, Run, contents
from tests.cli.test_sweep import TINY, Sweep, calls, records, sweep
from trainer.config.compose import compose

__all__ = ["sweep"]
SPACE = "optimizer.lr=tag(log,interval(0.001,1))"
EVALUATED = ("train.eval_every=3", "sweeper=tpe")
# The lower end of the loss is at 0.05.
LEARN = """#!/usr/bin/env bash
for word in "$@"; do last="${word#run_dir=}"; done
folder="${last//\\'/}"
echo "$*" >>"$PWD/calls"
mkdir -p "$folder"
if [[ -e stop_after && "$(wc -l <calls)" -gt "$(cat stop_after)" ]]; then exit 75; fi
lr="$(sed 's/.*optimizer.lr=\\([0-9.e-]*\\).*/\\1/' <<<"$*")"
[[ ! -e fails ]] || exit "$(cat fails)"
awk -v lr="$lr" 'BEGIN { exit !(lr > 0.5) }' && exit 5
loss="$(awk -v lr="$lr" 'BEGIN { x = log(lr) - log(0.05); print 1 + x * x }')"
echo "{\\"step\\": 3, \\"eval/loss\\": $loss, \\"train/loss\\": 9}" >"$folder/metrics.jsonl"
echo "{\\"status\\": \\"finished\\", \\"step\\": 3, \\"final\\": {\\"train/loss\\": 9}}" >"$folder/summary.json"
"""


def search(sweep: Sweep, *words: str) -> Answer:
    return sweep(SPACE, *EVALUATED, *words, script=LEARN)


def rates(place: Path) -> list[float]:
    return [compose(call.split()[3:]).optimizer.lr for call in calls(place)]


def summary(place: Path) -> dict[str, Any]:
    found = yaml.safe_load((place / "sweeps/default/sweep.yaml").read_text())
    assert isinstance(found, dict)
    return found


def test_it_tries_as_many_as_asked_and_tells_the_best(sweep: Sweep, place: Path) -> None:
    answer = search(sweep, "sweeper.trials=12")
    assert (answer.code, answer.err) == (0, "")
    assert len(calls(place)) == 12
    losses = [float(str(record.get("eval/loss", math.inf))) for record in records(place)]
    best = records(place)[losses.index(min(losses))]
    found = summary(place)
    assert found["best"] == {**best["values"], "eval/loss": min(losses)}  # type: ignore[dict-item]
    assert (found["best_run_dir"], found["metric"]) == (best["run_dir"], "eval/loss")
    assert (found["sweeper"], found["trials"], found["direction"]) == ("tpe", 12, "minimize")
    assert answer.out.splitlines()[-1] == f"* lowest eval/loss, in {best['run_dir']}"
    diverged = [record["status"] for record in records(place)].count("failed (5)")
    assert found["runs"] == {"finished": 12 - diverged, **({"failed (5)": diverged} if diverged else {})}


def test_results_decide_what_is_tried_after_the_first_ten(sweep: Sweep, place: Path) -> None:
    search(sweep, "sweeper.trials=11")
    search(sweep, "sweeper.trials=11", "sweeper=random", "run_dir=random")
    found = rates(place)
    assert found[:10] == found[11:21]
    assert found[10] != found[21]


def test_stopped_and_started_again_it_tries_what_it_would_have_tried(sweep: Sweep, place: Path) -> None:
    # The first ten of a search are random.
    words = ("sweeper.trials=12", "sweeper.seed=7")
    search(sweep, *words, "run_dir=whole")
    whole = rates(place)
    (place / "calls").unlink()
    for stop_after in (3, 11):
        (place / "stop_after").write_text(str(stop_after))
        answer = search(sweep, *words, "run_dir=parts")
        assert answer.code == 75
        assert "stopped as asked; the same command goes on from there" in answer.out
    (place / "stop_after").unlink()
    assert search(sweep, *words, "run_dir=parts").code == 0
    found = rates(place)
    # The point under way is started again, to go on from its checkpoint; none of the finished ones is.
    assert list(dict.fromkeys(found)) == whole
    assert len(found) == 12 + 2
    assert len(records(place, "parts")) == 12


def test_done_it_does_nothing_and_with_more_trials_it_goes_on(sweep: Sweep, place: Path) -> None:
    search(sweep, "sweeper.trials=3")
    search(sweep, "sweeper.trials=3")
    assert len(calls(place)) == 3
    answer = search(sweep, "sweeper.trials=5")
    assert len(calls(place)) == 5
    assert answer.out.count("has finished before") + answer.out.count("has failed before") == 3


def test_what_cannot_be_trained_is_bad_and_other_failures_are_nothing(sweep: Sweep, place: Path) -> None:
    (place / "fails").write_text("5")
    assert search(sweep, "sweeper.trials=2").code == 5
    (place / "fails").write_text("7")
    assert search(sweep, "sweeper.trials=4").code == 5
    (place / "fails").unlink()
    assert search(sweep, "sweeper.trials=5").code == 0
    backend = JournalFileBackend(str(place / "sweeps/default/study.journal"))
    study = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))
    assert [trial.state.name for trial in study.trials][:4] == ["PRUNED", "PRUNED", "FAIL", "FAIL"]
    assert len(calls(place)) == 5, "a failed point is not tried again"


def test_a_full_disk_ends_the_search(sweep: Sweep, place: Path) -> None:
    (place / "fails").write_text("8")
    assert search(sweep, "sweeper.trials=9").code == 8
    assert len(calls(place)) == 1


def test_groups_whole_numbers_and_steps(sweep: Sweep, place: Path) -> None:
    space = ("layout=single,dp2", "train.seed=interval(1,4)", "model.dropout=range(0,0.3,0.1)", "optimizer.lr=0.05")
    answer = sweep(*space, *EVALUATED, "sweeper=random", "sweeper.trials=8", script=LEARN)
    assert answer.code == 0
    configs = [compose(call.split()[3:]) for call in calls(place)]
    assert {config.train.seed for config in configs} <= {1, 2, 3, 4}
    assert {config.model.dropout for config in configs} <= {0.0, 0.1, 0.2}
    assert {config.layout.data_parallel_size for config in configs} == {None, 2}


def test_a_point_that_is_refused_is_left_out(sweep: Sweep, place: Path) -> None:
    words = ("layout=single,pp4", "model.num_layers=3", "optimizer.lr=0.05,0.06", "sweeper.trials=6")
    answer = sweep(*words, *EVALUATED, script=LEARN)
    assert answer.code == 0
    assert "left out: model.num_layers (3) must be at least layout.pipeline_parallel_size (4)" in answer.out
    assert all("pp4" not in call for call in calls(place))


def test_the_same_point_again_is_not_trained_again(sweep: Sweep, place: Path) -> None:
    answer = sweep("optimizer.lr=0.05,0.06", *EVALUATED, "sweeper.trials=6", script=LEARN)
    assert answer.code == 0
    assert len(calls(place)) == 2
    assert answer.out.count("has finished before") == 4


def test_dry_run_says_what_is_searched(trident: Run, place: Path) -> None:
    answer = trident("train", "-m", "--dry-run", SPACE, *EVALUATED, *TINY[:2], "layout=single,dp2")
    assert (answer.code, contents(place)) == (0, {})
    assert answer.out.splitlines() == [
        "# 20 points by sweeper=tpe, to minimize eval/loss",
        "train.eval_every=3",
        *TINY[:2],
        "optimizer.lr: 0.001 to 1, by its logarithm",
        "layout: single or dp2",
    ]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["sweeper=tpe"], "--multirun needs a key with several values"),
        (["sweeper=tep", SPACE], "sweeper must be one of grid, random, tpe, but is 'tep'"),
        (["sweeper=tpe", SPACE, "sweeper.trails=3"], "there is no setting 'sweeper.trails' of a sweep; did you mean"),
        (["sweeper=tpe", SPACE, "sweeper.trials=0"], "sweeper.trials must be at least 1, but is 0"),
        (["sweeper=tpe", SPACE, "sweeper.trials=few"], "sweeper.trials must be an integer, but is 'few'"),
        (["sweeper=tpe", SPACE, "sweeper.direction=down"], "sweeper.direction must be one of minimize, maximize"),
        (["train.seed=1,2", "sweeper.trials=3"], "sweeper.trials has no effect with sweeper=grid; add sweeper=tpe"),
        (["hydra/sweeper=optuna", SPACE], "'hydra/sweeper=optuna' is written sweeper=... here"),
        (["hydra.sweeper.n_trials=3", SPACE], "'hydra.sweeper.n_trials=3' is written sweeper.trials=... here"),
        ([SPACE], f"'{SPACE}' has no values to list; write them with commas"),
        (
            ["sweeper=tpe", SPACE],
            "sweeper.metric (eval/loss) needs an evaluation in every run, but train.eval_every is 0; use "
            "train.eval_every=200, or sweeper.metric=train/loss",
        ),
        (["sweeper=tpe", SPACE, "train.eval_every=900"], "sweeper.metric (eval/loss) needs an evaluation in every run"),
        (["train.seed=1,2", "sweeper.metric=eval/loss"], "sweeper.metric (eval/loss) needs an evaluation in every run"),
        ([*EVALUATED, "optimizer.lr=interval(1,0.1)"], "'optimizer.lr=interval(1,0.1)' must go from a smaller to a"),
        ([*EVALUATED, "optimizer.lr=tag(log,interval(0,1))"], "'optimizer.lr=tag(log,interval(0,1))' must go from"),
        (
            [*EVALUATED, "train.seed=interval(0.5,3)"],
            "'train.seed=interval(0.5,3)' must have whole numbers at its ends",
        ),
        ([*EVALUATED, "optimizer.lrr=interval(0.5,3)"], "there is no key 'optimizer.lrr'"),
        ([*EVALUATED, SPACE, "model.num_layers=0"], "model.num_layers must be at least 1, but is 0"),
        ([*EVALUATED, "layout=pp4,tp2_pp4", "model.num_layers=3"], "model.num_layers (3) must be at least"),
        ([*EVALUATED, SPACE, "run_dir=a,b"], "run_dir must be one folder for the sweep"),
    ],
)
def test_what_is_refused(words: list[str], problem: str, refused: Run) -> None:
    answer = refused("train", "--multirun", *TINY, "train.steps=200", *words)
    assert answer.problems[0].startswith(problem)


def test_a_metric_that_no_run_logs_ends_it(sweep: Sweep, place: Path) -> None:
    answer = search(sweep, "sweeper.metric=train/los")
    assert answer.code == 2
    assert answer.problems[0].endswith("did you mean 'train/loss'?")
    assert len(calls(place)) == 1


def test_any_metric_and_the_highest(sweep: Sweep, place: Path) -> None:
    answer = sweep("optimizer.lr=0.1,0.3", "sweeper.metric=perf/tokens_per_second", "sweeper.direction=maximize")
    assert answer.out.splitlines()[-1].startswith("* highest perf/tokens_per_second, in ")


def test_another_search_in_the_same_folder_is_refused(sweep: Sweep, place: Path) -> None:
    search(sweep, "sweeper.trials=1")
    answer = sweep("optimizer.lr=interval(0.001,1)", *EVALUATED, "sweeper.trials=2", script=LEARN)
    assert answer.code == 2
    assert answer.problems[0].startswith("run_dir must hold this search, but")
    assert search(sweep, "sweeper.trials=1", "sweeper.direction=maximize").code == 2


def test_without_optuna(refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.sweeps.search.importlib.util.find_spec", lambda name: None)
    answer = refused("train", "-m", SPACE, *EVALUATED)
    assert answer.problems == ["sweeper=tpe needs the package optuna, but it is not installed"]
    assert answer.hints[0] == "pip install 'trident-trainer[search]'"


def test_without_multirun(refused: Run) -> None:
    answer = refused("train", "sweeper=tpe")
    assert answer.problems == ["'sweeper=tpe' needs --multirun, but it is not there; add it, or leave the word out"]


def test_the_study_survives_a_kill_while_a_trial_is_made(sweep: Sweep, place: Path) -> None:
    search(sweep, "sweeper.trials=2")
    journal = place / "sweeps/default/study.journal"
    lines = journal.read_text().splitlines(keepends=True)
    made = [index for index, line in enumerate(lines) if json.loads(line)["op_code"] == 4]
    # As if the process had died between the second trial and its parameter.
    journal.write_text("".join(lines[: made[1] + 1]))
    before = rates(place)
    assert search(sweep, "sweeper.trials=3").code == 0
    assert rates(place)[:2] == before
    assert len(rates(place)) == 3
