from __future__ import annotations

import json
import os
import shlex
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Answer, Run, contents
from tests.helpers.command import wait_until
from trainer.config.compose import compose

TINY = ("data=synthetic", "model.vocab_size=256", "model.hidden_size=32", "model.seq_length=32", "runtime.device=cpu")
LEARN = """#!/usr/bin/env bash
# Stands in for Python: trains in no time, and leaves what a run leaves.
for word in "$@"; do last="${word#run_dir=}"; done
folder="${last//\\'/}"
echo "$*" >>"$PWD/calls"
mkdir -p "$folder"
case "$*" in
    *lr=0.5*) exit 5 ;;
    *lr=0.7*) kill -KILL $$ ;;
    *lr=0.9*) status=stopped code=75 ;;
    *) status=finished code=0 ;;
esac
loss="$(sed 's/.*optimizer.lr=\\([0-9.]*\\).*/\\1/' <<<"$*")"
final="{\\"train/loss\\": $loss, \\"perf/tokens_per_second\\": 1234.5}"
echo "{\\"status\\": \\"$status\\", \\"step\\": 3, \\"final\\": $final}" >"$folder/summary.json"
exit $code
"""
Sweep = Callable[..., Answer]


@pytest.fixture
def sweep(trident: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Runs a sweep whose runs are the script above."""
    python = place / "python"

    def run(*words: str, script: str = LEARN) -> Answer:
        python.write_text(script)
        python.chmod(0o755)
        monkeypatch.setattr("trainer.sweeps.process.sys.executable", str(python))
        return trident("train", "--multirun", *TINY, "train.steps=3", *words)

    return run


def calls(place: Path) -> list[str]:
    return (place / "calls").read_text().splitlines()


def records(place: Path, root: str = "sweeps/default") -> list[dict[str, object]]:
    found = json.loads((place / root / "sweep.json").read_text())
    assert isinstance(found, list)
    return found


def test_each_point_has_its_folder_and_a_row(sweep: Sweep, place: Path) -> None:
    answer = sweep("optimizer.lr=0.2,0.1", "layout=single,dp2")
    assert (answer.code, answer.err) == (0, "")
    folders = [compose(call.split()[3:]).run_dir for call in calls(place)]
    root = place / "sweeps" / "default"
    names = [f"optimizer.lr={lr},layout={layout}" for lr in (0.2, 0.1) for layout in ("single", "dp2")]
    assert folders == [str(root / name) for name in names]
    assert [line.split()[:2] for line in answer.out.splitlines() if line.startswith("run ")] == [
        ["run", str(number)] for number in (1, 2, 3, 4)
    ]
    table = answer.out.splitlines()[-6:]
    assert table[0].split() == ["run", "status", "step", "train/loss", "eval/loss", "tokens/s", "GiB"]
    assert table[3].split() == ["*", names[2], "finished", "3", "0.1000", "1,234"]
    assert table[5] == f"* lowest train/loss, in {root / names[2]}"
    assert [record["point"] for record in records(place)] == names


def test_a_point_that_fails_does_not_stop_the_others(sweep: Sweep, place: Path) -> None:
    answer = sweep("optimizer.lr=0.5,0.7,0.1")
    assert answer.code == 5
    assert [record["status"] for record in records(place)] == ["failed (5)", "failed (137)", "finished"]
    assert len(calls(place)) == 3


def test_unless_it_is_asked_to(sweep: Sweep, place: Path) -> None:
    answer = sweep("--fail-fast", "optimizer.lr=0.1,0.5,0.2")
    assert answer.code == 5
    assert [record["status"] for record in records(place)] == ["finished", "failed (5)", "not started"]
    assert len(calls(place)) == 2


def test_asked_to_stop_it_goes_on_from_there_the_next_time(sweep: Sweep, place: Path) -> None:
    answer = sweep("optimizer.lr=0.1,0.9,0.2", "run_dir=mine")
    assert answer.code == 75
    assert "stopped as asked; the same command goes on from there" in answer.out
    assert [record["status"] for record in records(place, "mine")] == ["finished", "stopped", "not started"]
    again = sweep("optimizer.lr=0.1,0.9,0.2", "run_dir=mine", script=LEARN.replace("0.9*", "none*"))
    assert again.code == 0
    assert "has finished before" in again.out
    assert [call.split("optimizer.lr=")[1][:3] for call in calls(place)] == ["0.1", "0.9", "0.9", "0.2"]
    more = sweep("optimizer.lr=0.1,0.9,0.2", "run_dir=mine", "train.steps=4")
    assert more.code == 75, "a run that is to be longer has not finished"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_run(number: signal.Signals, sweep: Sweep, place: Path) -> None:
    script = "#!/usr/bin/env bash\ntrap 'exit 75' TERM INT\ntouch here\nwhile :; do sleep 0.05; done\n"

    def ask() -> None:
        wait_until((place / "here").exists, 30, "the start of the run")
        os.kill(os.getpid(), number)

    threading.Thread(target=ask, daemon=True).start()
    before = signal.getsignal(number)
    assert sweep("optimizer.lr=0.1,0.2", script=script).code == 75
    assert signal.getsignal(number) is before
    assert [record["status"] for record in records(place)] == ["failed", "not started"]


def test_dry_run_prints_a_command_a_point_and_writes_nothing(trident: Run, place: Path) -> None:
    answer = trident("train", "-m", "--dry-run", *TINY, "optimizer.lr=0.1,0.2", "run_dir=it is")
    assert (answer.code, contents(place)) == (0, {})
    lines = answer.out.splitlines()
    assert lines[::2] == ["# 1/2 optimizer.lr=0.1", "# 2/2 optimizer.lr=0.2"]
    words = shlex.split(lines[3])
    assert words[:2] == ["trident", "train"]
    assert compose(words[2:]).run_dir == str(place / "it is" / "optimizer.lr=0.2")


def test_names_that_no_folder_can_have(trident: Run, place: Path) -> None:
    long = ["x" * 300, "x" * 299 + "y"]
    answer = trident("train", "-m", "--dry-run", *TINY, f"data.text_key=a/b,a b,{','.join(long)}")
    commands = answer.out.splitlines()[1::2]
    folders = [Path(compose(shlex.split(command)[2:]).run_dir).name for command in commands]
    assert len(set(folders)) == 4
    assert all(len(folder) < 200 and "/" not in folder for folder in folders)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["optimizer.lr=1"], "--multirun needs a key with several values"),
        (["run_dir=a,b"], "run_dir must be one folder for the sweep"),
        (["layout=tp2,tp0"], "layout=tp0 must have sizes of at least 1, but has tp0"),
        (["train.seed=1,2", "train.stesp=3"], "there is no key 'train.stesp'; did you mean 'train.steps'?"),
        (
            ["train.seed=1,2", "layout=single,pp4", "model.num_layers=3"],
            "model.num_layers (3) must be at least layout.pipeline_parallel_size (4); use "
            "layout.pipeline_parallel_size <= 3 (in train.seed=1,layout=pp4 and 1 more)",
        ),
    ],
)
@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_sweep_with_a_wrong_point_is_refused(
    words: list[str], problem: str, options: list[str], refused: Run
) -> None:
    answer = refused("train", "--multirun", *options, *TINY, *words)
    assert answer.problems[0].startswith(problem)
    assert len(answer.problems) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--dry-run"], "train.seed must be one value, but '1,2' gives several; add --multirun for one run each"),
        (["--fail-fast", "--dry-run"], "--fail-fast needs --multirun, but it is not there; add it, or leave it out"),
    ],
)
def test_options_without_a_sweep(options: list[str], told: str, refused: Run) -> None:
    (problem,) = refused("train", *options, "train.seed=1,2").problems
    assert problem.startswith(told)


def test_not_under_a_launcher(refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert refused("train", "-m", "train.seed=1,2").problems[0].startswith("--multirun starts runs itself")


def test_not_into_the_folder_of_a_run(refused: Run, place: Path) -> None:
    (place / "mine").mkdir()
    (place / "mine" / "config.yaml").touch()
    answer = refused("train", "-m", *TINY, "train.seed=1,2", "run_dir=mine")
    assert f"but {place / 'mine'} holds a run" in answer.problems[0]


@pytest.mark.parametrize(
    ("words", "one", "other"),
    [
        (["train.seed=1,2", "run_dir=x/${train.seed}"], "x/1", "x/2"),
        (["train.seed=1,1,2", "run_dir=x/${now:%f}/${train.seed}"], "x/now/1", "x/now/2"),
        (["optimizer.lr=0.1,0.2", "name=a${optimizer.lr}", "run_dir=x/${name}"], "x/a0.1", "x/a0.2"),
        (["layout=single,dp2", "run_dir=x/${hydra:runtime.choices.layout}"], "x/single", "x/dp2"),
        (["sweeper=random", "train.seed=range(1,9)", "run_dir=x/${train.seed}"], "x/1", "x/8"),
    ],
)
def test_a_folder_that_would_be_another_one_for_each_run(
    words: list[str], one: str, other: str, refused: Run, place: Path
) -> None:
    [problem] = refused("train", "-m", "--dry-run", *TINY, *words).problems
    assert problem.startswith("run_dir must be one folder for the sweep, but is ")
    assert f"{one} for one run and " in problem
    assert f"{other} for another" in problem
    assert contents(place) == {}


def test_a_folder_that_refers_to_the_clock_or_to_what_all_runs_share(trident: Run) -> None:
    words = ("optimizer.lr=0.1,0.2", "name=mine", "run_dir=x/${name}/${now:%f}")
    answer = trident("train", "-m", "--dry-run", *TINY, *words)
    folders = [shlex.split(line)[-1].rpartition("/")[0] for line in answer.out.splitlines()[1::2]]
    assert (answer.code, len(folders), len(set(folders))) == (0, 2, 1)


def test_the_check_of_many_runs_is_announced(trident: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.sweeps.command._MANY", 2)
    answer = trident("train", "-m", "--dry-run", *TINY, "optimizer.lr=0.1,0.2,0.3")
    assert answer.out.startswith("# checking 3 runs first\n# 1/3 ")


def test_more_runs_than_can_be_checked_are_refused(refused: Run) -> None:
    [problem] = refused("train", "-m", "--dry-run", "train.seed=range(100000000)").problems
    assert "the values of train.seed (100,000,000) make 100,000,000" in problem


def test_runs_of_a_sweep_find_their_layouts_themselves(sweep: Sweep, place: Path) -> None:
    answer = sweep("layout=auto", "optimizer.lr=0.2,0.1")
    assert (answer.code, answer.err) == (0, "")
    assert all(compose(call.split()[3:]).layout.auto for call in calls(place))
    wrong = sweep("layout=auto", "optimizer.lr=0.2,-1")
    assert wrong.code == 2
    assert wrong.err.startswith("error: optimizer.lr must be greater than 0")
