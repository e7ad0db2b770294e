"""Where a run begins: its own newest checkpoint wins, the command that began it goes on, any other is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from trainer.checkpoint.manifest import MANIFEST, Manifest, describe_layout, file_facts
from trainer.checkpoint.origin import Found, Use, find_origin, lineage, read_origin
from trainer.checkpoint.store import CheckpointStore
from trainer.config.compose import compose, to_yaml
from trainer.config.plan import make_plan
from trainer.config.schema import TridentConfig
from trainer.errors import CheckpointError, ConfigError, TridentError
from trainer.loop.state import TrainState
from trainer.run_folder import RunFolder
from trainer.run_paths import CONFIG, LATEST, TENSORS

WORDS = ("data=synthetic", "model.vocab_size=61", "model.seq_length=16", "train.steps=100")
NONE = ("checkpoint.resume=never", "checkpoint.save_final=false")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Relative paths and `~` begin in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@cache
def plain() -> TridentConfig:
    return compose(WORDS)


def config_of(*words: str) -> TridentConfig:
    """Return what the words compose to, in a thousandth of the time."""
    config = plain()
    for word in words:
        key, _, value = word.partition("=")
        group, _, name = key.rpartition(".")
        if not group:
            config = replace(config, run_dir=value)
            continue
        section = getattr(config, group)
        now = getattr(section, name)
        new = value == "true" if isinstance(now, bool) else type(now)(value) if now is not None else value
        config = replace(config, **{group: replace(section, **{name: new})})
    return config


def save(checkpoint: Path, step: int, *words: str) -> Path:
    """Write a checkpoint without tensors."""
    config = config_of(*words)
    (checkpoint / TENSORS).mkdir(parents=True)
    (checkpoint / CONFIG).write_text(to_yaml(config))
    plan = make_plan(config, 61)
    state = TrainState(step, tokens_seen=7, sample_length=16).to_dict()
    files = {CONFIG: file_facts(checkpoint / CONFIG)}
    manifest = Manifest(step, 61, state, {}, 4.5, describe_layout(plan), {}, files)
    (checkpoint / MANIFEST).write_text(manifest.to_json())
    return checkpoint


class Command:
    """A command line that trains, without the training.

    Its run saves at the steps that it is told.
    """

    def __init__(self, *words: str, run_dir: str = "run") -> None:
        self.config = config_of(f"run_dir={run_dir}", *words)
        self.folder = RunFolder.of(self.config)

    def start(self, *saved: int, status: str = "stopped") -> Found | None:
        """Start; return what the run began from, None for nothing or for its own checkpoint."""
        folder = self.folder
        folder.check(self.config)
        folder.write(self.config, {})
        found = None if folder.checkpoints.steps() else find_origin(self.config, folder.path)
        if found is not None:
            folder.begin_from(found, self.config)
        folder.metrics.write_text('{"step": 1}\n')
        for step in saved:
            save(folder.checkpoints.path(step), step)
        if saved:
            folder.checkpoints.point_at(saved[-1])
        step = (saved or (0,))[-1]
        folder.summary.write_text(json.dumps({"status": status, "step": step, **lineage(folder.path)}))
        return found

    def refused(self) -> TridentError:
        before = sorted(path for path in self.folder.path.rglob("*"))
        with pytest.raises(TridentError) as caught:
            self.folder.check(self.config)
        assert sorted(path for path in self.folder.path.rglob("*")) == before
        assert len(caught.value.problems) == 1
        assert "\n" not in str(caught.value)
        return caught.value


@pytest.fixture
def base(here: Path) -> Path:
    """A run with checkpoints of the steps 4 and 8."""
    Command(run_dir="base").start(4, 8)
    return here / "base"


NAMES: tuple[Callable[[Path], str], ...] = (
    str,
    lambda base: f"{base}/checkpoints",
    lambda base: f"{base}/checkpoints/step_8",
    lambda base: f"{base}/checkpoints/latest",
    lambda base: f"{base}/checkpoints/step_8/",
    lambda base: "base",
    lambda base: "./base/checkpoints/../checkpoints/step_8",
    lambda base: "~/base",
)


@pytest.mark.parametrize(("key", "name"), [*(("resume", name) for name in NAMES), ("init_from", str)])
def test_the_command_that_began_a_run_goes_on_with_it(key: str, name: Callable[[Path], str], base: Path) -> None:
    command = Command(f"checkpoint.{key}={name(base)}")
    found = command.start()
    assert found is not None
    assert (found.path.resolve(), found.use) == (base / "checkpoints" / "step_8", Use(f"checkpoint.{key}"))
    assert command.start(10) is not None, "killed before its first save, it begins there again"
    assert command.start(12) is None
    shutil.rmtree(base)
    assert command.start() is None, "what it began from is not needed any more"


def test_it_is_the_same_command_in_another_folder(base: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("checkpoint.resume=base",)
    Command(*words, run_dir=str(here / "run")).start(10)
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert Command(*words, run_dir=str(here / "run")).start(12) is None


def test_where_the_same_command_goes_on_is_known(base: Path) -> None:
    fork, fresh = Command("checkpoint.resume=base"), Command("checkpoint.init_from=base", run_dir="fresh")
    for command, begins in ((fork, 8), (fresh, 0)):
        command.start()
        assert command.folder.goes_on_from() == begins
        command.start(12)
        assert command.folder.goes_on_from() == 12


def test_a_fork_that_went_on_by_itself_still_knows_where_it_began(base: Path, here: Path) -> None:
    Command("checkpoint.resume=base").start(10)
    Command().start(12)
    origin = read_origin(here / "run")
    assert origin is not None
    assert (origin.key, origin.named, origin.checkpoint, origin.step) == (
        *("checkpoint.resume", str(base), f"{base}/checkpoints/step_8", 8),
    )
    assert json.loads((here / "run" / "summary.json").read_text())["began_from"]["step"] == 8
    for name in ("base", str(base), "base/checkpoints/step_8", "base/checkpoints/latest"):
        Command(f"checkpoint.resume={name}").folder.check(Command(f"checkpoint.resume={name}").config)
    base.rename(here / "moved")
    Command("checkpoint.resume=moved").folder.check(Command("checkpoint.resume=moved").config)


@pytest.mark.parametrize("key", ["resume", "init_from"])
def test_killed_before_its_first_save_it_begins_where_it_did(key: str, base: Path) -> None:
    """Although the run that it was forked from went on meanwhile: otherwise a kill would change the result."""
    command = Command(f"checkpoint.{key}=base")
    command.start()
    save(base / "checkpoints" / "step_20", 20)
    found = command.start()
    assert found is not None
    assert found.path == base / "checkpoints" / "step_8"
    # Unless that one is gone.
    shutil.rmtree(base / "checkpoints" / "step_8")
    found = command.start()
    assert found is not None
    assert found.path == base / "checkpoints" / "step_20"
    assert lineage(command.folder.path) == {
        "checkpoint": None,
        "began_from": {**vars(read_origin(command.folder.path)), "step": 20},
    }


@pytest.mark.parametrize(
    ("began", "then"),
    [
        ((), "checkpoint.resume=base"),
        ((), "checkpoint.init_from=base"),
        (("checkpoint.resume=other",), "checkpoint.resume=base"),
        (("checkpoint.init_from=base",), "checkpoint.resume=base"),
        (("checkpoint.resume=base",), "checkpoint.init_from=base"),
        (("checkpoint.resume=base/checkpoints/step_4",), "checkpoint.resume=base"),
        ((), "checkpoint.resume=nowhere"),
        ((), "checkpoint.init_from=run/checkpoints/step_8"),
    ],
)
def test_what_a_run_did_not_begin_from_is_refused_and_nothing_is_lost(
    began: tuple[str, ...], then: str, base: Path
) -> None:
    Command(run_dir="other").start(2)
    Command(*began).start(10, 12)
    error = Command(then).refused()
    key = then.partition("=")[0]
    assert isinstance(error, ConfigError)
    gone = "" if Path(then.partition("=")[2]).exists() else " (which does not exist)"
    assert str(error).startswith(f"run_dir must be a folder without checkpoints to begin from {then}{gone}, but ")
    assert "holds step_12 of a run that did not begin there" in str(error)
    assert error.hints[0] == f"to go on with that run leave {key} out"
    assert len(error.hints) == (1 if gone else 2), "what is not there can be begun from nowhere"
    assert Command().start(14) is None, "the way out works"


@pytest.mark.parametrize(
    ("named", "hints"),
    [
        ("checkpoint.resume=nowhere", []),
        ("checkpoint.init_from=nowhere", []),
        ("checkpoint.resume=latest", ["checkpoint.resume=auto goes on from the newest checkpoint in run_dir"]),
        ("checkpoint.resume=AUTO", ["checkpoint.resume=auto goes on from the newest checkpoint in run_dir"]),
        ("checkpoint.resume=Never", ["checkpoint.resume=never begins anew, in a fresh folder"]),
    ],
)
def test_what_is_no_checkpoint_is_not_proposed_for_another_folder(named: str, hints: list[str]) -> None:
    Command().start(10, 12)
    error = Command(named).refused()
    key = named.partition("=")[0]
    assert f"begin from {named} (which does not exist), but " in str(error)
    assert error.hints == (f"to go on with that run leave {key} out", *hints)


def test_back_in_the_same_folder_is_refused_with_the_way_out(here: Path) -> None:
    Command().start(4, 8, 12)
    back = Command("checkpoint.resume=run/checkpoints/step_4")
    error = back.refused()
    assert "is of step 4, and" in str(error)
    assert "holds step_8, step_12" in str(error)
    moved = error.hints[2].partition("mv ")[2].removesuffix(" ELSEWHERE").split()
    assert moved == [str(here / "run" / "checkpoints" / f"step_{step}") for step in (8, 12)]
    (here / "aside").mkdir()
    for path in moved:
        shutil.move(path, here / "aside")
    assert back.start(6) is None
    assert back.start(8) is None, "the same command goes on"
    fork = Command("checkpoint.resume=run/checkpoints/step_4", run_dir="run/fork")
    assert fork.start(5) is not None, "beside it, or below it, is a run of its own"


@pytest.mark.parametrize("name", ["run", "run/checkpoints", "run/checkpoints/latest", "run/checkpoints/step_8", "link"])
def test_its_own_newest_may_be_named(name: str, here: Path) -> None:
    Command().start(4, 8)
    (here / "link").symlink_to(here / "run")
    command = Command(f"checkpoint.resume={name}")
    assert command.start(12) is None
    assert command.start(16) is None, "the same command goes on, although the name is of an older one now"


def test_a_fork_that_has_nothing_to_train_is_a_mistake(base: Path) -> None:
    command = Command("checkpoint.resume=base", "train.steps=8")
    error = command.refused()
    assert isinstance(error, ConfigError)
    assert str(error).startswith(
        "train.steps (8) must be above the step of the checkpoint that checkpoint.resume names"
    )
    assert "checkpoint.init_from=base" in error.hints[1]
    Command("checkpoint.init_from=base", "train.steps=8").start(8)
    longer = Command("checkpoint.resume=base", "train.steps=9", run_dir="longer")
    longer.start(9, status="finished")
    longer.folder.check(longer.config)
    assert longer.folder.concluded_at(9, saved=9) == 9, "a fork that has finished is finished"


def test_a_run_is_at_its_end_only_while_its_last_checkpoint_is_there() -> None:
    command = Command()
    command.start(50, 100, status="finished")
    folder = command.folder
    assert folder.concluded_at(100, saved=100) == 100
    assert folder.concluded_at(60, saved=100) == 100
    assert folder.concluded_at(101, saved=100) is None
    assert folder.concluded_at(100, saved=50) is None, "the last one was damaged, or moved away to go back"
    assert folder.concluded_at(100, saved=None) is None
    folder.summary.write_text(json.dumps({"status": "finished", "step": 100}))
    assert (folder.concluded_at(100, saved=100), folder.concluded_at(100, saved=50)) == (100, None)


def test_a_finished_run_that_saved_nothing_is_not_trained_again() -> None:
    command = Command("checkpoint.save_final=false")
    command.start()
    command.folder.summary.write_text(json.dumps({"status": "finished", "step": 100, "checkpoint": None}))
    assert command.folder.concluded_at(100, saved=None) == 100


@pytest.mark.parametrize("saved", [(), (10,)])
def test_never_goes_on_with_what_it_began_itself(saved: tuple[int, ...]) -> None:
    command = Command(*NONE)
    command.start(*saved)
    command.start(*saved and (12,))
    command.folder.check(command.config)


def test_never_wants_a_fresh_folder(here: Path) -> None:
    Command().start(10)
    never = Command(*NONE)
    assert str(never.refused()).endswith(f"but {here / 'run'} holds a run")
    done = Command(*NONE, run_dir="done")
    done.start(100, status="finished")
    assert str(done.refused()).endswith(f"but {here / 'done'} holds a run that has finished")


def test_never_with_weights_of_another_run(base: Path) -> None:
    command = Command("checkpoint.resume=never", "checkpoint.init_from=base")
    assert command.start(10) is not None
    assert command.start() is None


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("latest", "checkpoint.resume=auto goes on"),
        ("last", "checkpoint.resume=auto goes on"),
        ("true", "checkpoint.resume=auto goes on"),
        ("none", "checkpoint.resume=never begins anew"),
        ("scratch", "checkpoint.resume=never begins anew"),
    ],
)
def test_words_of_other_trainers_are_understood_well_enough_to_say_ours(word: str, hint: str) -> None:
    error = Command(f"checkpoint.resume={word}").refused()
    assert isinstance(error, CheckpointError)
    assert str(error).startswith("checkpoint.resume must be auto, never, or the path of a checkpoint, but: ")
    assert error.hints[0].startswith(hint)


@pytest.mark.parametrize("key", ["resume", "init_from"])
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("model.num_layers=2", "model.num_layers"),
        ("model.seq_length=32", "model.seq_length=16 (here 32)"),
        ("model.norm=rmsnorm", "model.norm=layernorm (here rmsnorm)"),
    ],
)
def test_another_model_is_refused_before_a_rank_starts(key: str, words: str, found: str, base: Path) -> None:
    error = Command(f"checkpoint.{key}=base", "model.position=learned", words).refused()
    assert isinstance(error, CheckpointError)
    assert found in str(error)


@pytest.mark.parametrize("key", ["resume", "init_from"])
def test_what_is_no_checkpoint_is_named(key: str, base: Path, here: Path) -> None:
    for name, wrong in (
        ("nowhere", "does not exist"),
        ("base/checkpoints/step_9", "does not exist"),
        ("base/config.yaml", "must be the folder of a run or of a checkpoint, but is a file"),
        ("base/logs", "must hold a whole checkpoint"),
    ):
        error = Command(f"checkpoint.{key}={name}").refused()
        assert isinstance(error, CheckpointError)
        assert str(error).startswith(f"checkpoint.{key} must be ")
        assert str(here / name) in str(error)
        assert wrong in str(error)


def test_a_checkpoint_is_no_folder_to_train_in(base: Path) -> None:
    for run_dir in ("base/checkpoints/step_8", "base/checkpoints/step_8/tensors/x"):
        error = Command(run_dir=run_dir).refused()
        assert f"but {base}/checkpoints/step_8 is a checkpoint, which nothing may change" in str(error)


def test_damage_in_a_fork_is_not_covered_up_with_what_it_began_from(base: Path) -> None:
    command = Command("checkpoint.resume=base")
    command.start(10)
    (command.folder.checkpoints.path(10) / MANIFEST).unlink()
    command.folder.check(command.config)
    assert command.folder.checkpoints.steps() == [10], "so the ranks find the damage, and end with exit code 4"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}', "\udcff"])
def test_a_record_that_cannot_be_read_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "origin.json").write_text(content, errors="surrogateescape")
    assert read_origin(tmp_path) is None


def test_a_home_that_does_not_exist(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"run_dir must be a path that can be found"):
        Command(run_dir="~nobody-here/run")
    with pytest.raises(ConfigError, match=r"checkpoint\.resume must be a path that can be found"):
        find_origin(Command("checkpoint.resume=~nobody-here/x").config, here)


def test_latest_is_a_name_too(base: Path) -> None:
    (base / "checkpoints" / LATEST).write_text("step_4\n")
    found = Command("checkpoint.resume=base/checkpoints/latest").start()
    assert found is not None
    assert found.manifest.step == 4
    assert CheckpointStore(base).steps() == [4, 8]
