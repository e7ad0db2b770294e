"""Runs that are killed again and again, and what must be true of them: shared by the chaos tests."""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.chaos.points import Point, points_of
from tests.chaos.traps import Event, Trap
from tests.chaos.world import Outcome, World
from trainer.checkpoint.fragments import TensorFolder
from trainer.checkpoint.store import find_checkpoint
from trainer.cli import main
from trainer.metrics.jsonl import read_rows

STEPS, EVERY, KEEP = 30, 3, 2
SAVES_SEEN = STEPS // EVERY - 2
"""Saves in the run whose events are the points to choose from."""
SAVES_UNDER_WAY = 1
"""Saves that may still be written while steps go on: each may cost one interval more."""
LOST_AT_MOST = EVERY * (1 + SAVES_UNDER_WAY)
KINDS = ("weight", "exp_avg", "exp_avg_sq")
PEER_LOST, DISK_FULL = 7, 8
PAGE_BYTES = 4096
WORDS = (
    *("data=synthetic", "data.synthetic_tokens=4096", "data.validation_fraction=0.1", "runtime.device=cpu"),
    *("model.vocab_size=61", "model.hidden_size=16", "model.num_layers=2", "model.num_attention_heads=2"),
    *("model.ffn_hidden_size=32", "model.seq_length=8", "model.dropout=0.1", "schedule=constant"),
    *("schedule.warmup_steps=0", "batch.global_batch_size=2", "batch.micro_batch_size=1"),
    *("runtime.threads_per_rank=1", "train.log_every=1", "train.eval_batches=1"),
    *(f"checkpoint.every={EVERY}", f"checkpoint.keep={KEEP}", "logging.wandb=disabled"),
)
_RESUMED = re.compile(r"resumed from \S+/step_([0-9]+)")


@dataclass(frozen=True)
class Layout:
    """A way to compute the runs."""

    name: str
    words: tuple[str, ...]
    world_size: int


LAYOUTS = (
    Layout("single", ("layout=single", "zero=stage0", "train.eval_every=0"), 1),
    Layout("dp2-zero1", ("layout=dp2", "zero=stage1", "train.eval_every=4"), 2),
    Layout("pp2", ("layout=pp2", "zero=stage0", "train.eval_every=5"), 2),
    Layout("tp2-sp", ("layout=tp2_sp", "zero=stage1", "train.eval_every=0"), 2),
)


@dataclass(frozen=True)
class Final:
    """What a finished run leaves, of which everything must be the same bit for bit."""

    rows: dict[int, tuple[Any, ...]]
    """By step: loss, gradient norm, tokens, validation loss."""
    tensors: str
    """Hash of all weights and moments."""
    counters: dict[str, float]
    ledger: str


def final_of(run_dir: Path) -> Final:
    """Return what the run in a folder left."""
    path, manifest = find_checkpoint(run_dir)
    tensors = TensorFolder(path, manifest.files)
    digest = hashlib.sha256()
    for kind in KINDS:
        for name in tensors.names(kind):
            digest.update(f"{kind}/{name}".encode() + tensors.read(kind, name).numpy().tobytes())
    ledger = str(manifest.train_state["sample_ledger"])
    return Final(rows_of(run_dir), digest.hexdigest(), dict(manifest.scalars), ledger)


def summary_of(run_dir: Path) -> tuple[Any, ...]:
    """Return what summary.json says of the end."""
    path = run_dir / "summary.json"
    summary = json.loads(path.read_text()) if path.exists() else {}
    return tuple(summary.get(key) for key in ("status", "step", "sample_ledger"))


def rows_of(run_dir: Path) -> dict[int, tuple[Any, ...]]:
    """Return the numbers of each step that metrics.jsonl holds."""
    names = ("train/loss", "train/grad_norm", "train/tokens_seen", "eval/loss")
    return {int(row["step"]): tuple(row.get(name) for name in names) for row in read_rows(run_dir / "metrics.jsonl")}


def last_row(run_dir: Path) -> int:
    """Return the last step in metrics.jsonl, 0 if there is none."""
    rows = read_rows(run_dir / "metrics.jsonl")
    return int(rows[-1]["step"]) if rows else 0


def newest(run_dir: Path) -> int:
    """Return the step of the newest checkpoint that has a name, 0 if there is none."""
    return max((int(path.name[5:]) for path in (run_dir / "checkpoints").glob("step_*")), default=0)


@dataclass(frozen=True)
class Rehearsal:
    """A run of a layout without a fault, and one with a single kill."""

    final: Final
    points: tuple[Point, ...]
    """To choose from."""
    steps: int
    checkpoint_bytes: int
    """Room that one checkpoint takes, in whole pages."""
    start_s: float
    """From the start to the first step of a resumed run."""
    step_s: float


def run_whole(layout: Layout, folder: Path, steps: int = STEPS) -> Rehearsal:
    """Run a layout undisturbed."""
    words = (*WORDS, *layout.words, f"train.steps={steps}")
    whole = folder / "whole"
    with World(words, layout.world_size, whole, folder / "notes_whole") as world:
        outcome = world.end()
    assert set(outcome.codes.values()) == {0}, outcome.output
    final = final_of(whole)
    assert sorted(final.rows) == list(range(1, steps + 1))
    room = _pages(whole / "checkpoints" / f"step_{steps}")
    return Rehearsal(final, (), steps, room, outcome.seconds, outcome.seconds / steps)


def rehearse(layout: Layout, folder: Path) -> Rehearsal:
    """Run a layout undisturbed, and again with one kill, whose events are noted."""
    whole = run_whole(layout, folder)
    words = (*WORDS, *layout.words, f"train.steps={STEPS}")
    publishing = Event(0, "rename", "checkpoints/.step_N.partial")
    run_dir = folder / "killed"
    with World(words, layout.world_size, run_dir, folder / "notes_killed", [Trap(publishing, 3)]) as world:
        outcome = world.end()
    assert outcome.sprung, f"nothing was killed:\n{outcome.output}"
    assert newest(run_dir) == 2 * EVERY
    with World(words, layout.world_size, run_dir, folder / "notes_resumed") as world:
        # The rows of steps that were done twice are there from the beginning.
        world.wait_until(lambda: last_row(run_dir) >= 3 * EVERY, time.monotonic() + 60)
        start_s = time.monotonic() - world.started
        outcome = world.end()
        points = [point for rank in range(layout.world_size) for point in points_of(world.events(rank))]
    assert set(outcome.codes.values()) == {0}, outcome.output
    step_s = (outcome.seconds - start_s) / (STEPS - 3 * EVERY)
    return replace(whole, points=tuple(points), start_s=start_s, step_s=step_s)


def _pages(folder: Path) -> int:
    return sum(-(-path.stat().st_size // PAGE_BYTES) * PAGE_BYTES for path in folder.rglob("*") if path.is_file())


@dataclass
class Tally:
    """What happened in a campaign."""

    faults: Counter[str] = field(default_factory=Counter)
    """By what was done where."""
    runs: int = 0
    starts: int = 0
    trained: int = 0
    """Steps, those done twice included."""
    useful: int = 0
    most_lost: int = 0
    seconds: float = 0.0

    @property
    def goodput(self) -> float:
        """Return the share of the trained steps that the finished runs are made of."""
        return self.useful / max(1, self.trained)

    def to_dict(self) -> dict[str, object]:
        """Return all of it as plain values."""
        return {**asdict(self), "faults": dict(self.faults), "goodput": round(self.goodput, 3)}

    def __str__(self) -> str:
        return (
            f"{self.faults.total()} faults in {self.runs} runs and {self.starts} starts, {self.seconds:.0f} s; "
            f"goodput {self.useful}/{self.trained} steps = {self.goodput:.0%}; lost at most {self.most_lost} steps "
            f"(interval {EVERY})"
        )


class Campaign:
    """Runs of one layout, one after the other, that are killed and started again.

    Args:
        layout: how they compute.
        rehearsal: of the layout.
        folder: for the runs.
        notes: folder for what this test writes, if not the same.
        words: more of the command line.
        seed: told in every message.
    """

    def __init__(
        self,
        layout: Layout,
        rehearsal: Rehearsal,
        folder: Path,
        seed: str,
        notes: Path | None = None,
        words: Sequence[str] = (),
    ) -> None:
        self.layout = layout
        self.rehearsal = rehearsal
        self.chance = random.Random(f"{seed} {layout.name}")
        self.tally = Tally()
        self._folder = folder
        self._notes = notes or folder
        self._seed = seed
        self._words = (*WORDS, *layout.words, f"train.steps={rehearsal.steps}", *words)
        self._history: list[str] = []
        self.run_dir = folder / "run_0"

    def start(self, traps: Sequence[Trap] = ()) -> World:
        """Return the next start of the current run, not entered yet."""
        self.tally.starts += 1
        self._newest_before = newest(self.run_dir)
        notes = self._notes / f"notes_{self.tally.starts}"
        return World(self._words, self.layout.world_size, self.run_dir, notes, traps)

    def judge(self, outcome: Outcome, what: str) -> bool:
        """Check one start that has ended; return whether something was killed in it.

        Args:
            what: was to happen, for messages and the tally.
        """
        self.note(f"{what} -> {outcome.codes}")
        self.tally.seconds += outcome.seconds
        was_killed = bool(outcome.killed or outcome.sprung) and any(code < 0 for code in outcome.codes.values())
        resumed = self._check_resumed(outcome)
        reached = max(last_row(self.run_dir), newest(self.run_dir), resumed)
        self.tally.trained += reached - resumed
        lost = reached - newest(self.run_dir)
        self.tally.most_lost = max(self.tally.most_lost, lost)
        self.check(lost <= LOST_AT_MOST, f"{lost} steps are lost, more than {LOST_AT_MOST}", outcome)
        survivors = {rank: code for rank, code in outcome.codes.items() if code >= 0}
        allowed = {0, PEER_LOST, *[1] * outcome.is_early} if was_killed else {0}
        self.check(set(survivors.values()) <= allowed, f"survivors ended with {survivors}", outcome)
        self.check(not outcome.unnoticed, f"ranks {outcome.unnoticed} did not notice the loss", outcome)
        if was_killed:
            self.tally.faults[what] += 1
        if not was_killed or outcome.codes == dict.fromkeys(outcome.codes, 0):
            self._check_finished(outcome)
        return was_killed

    def judge_refusal(self, outcome: Outcome, what: str) -> bool:
        """Check one start in which the disk refused to take something; return whether that ended it.

        Some refusals are no fault: a folder that is there already, an old checkpoint that stays.
        """
        self.note(f"{what} -> {outcome.codes}")
        self.tally.seconds += outcome.seconds
        resumed = self._check_resumed(outcome)
        self.tally.trained += max(last_row(self.run_dir), newest(self.run_dir), resumed) - resumed
        if set(outcome.codes.values()) == {0}:
            self._check_finished(outcome)
            return False
        self.tally.faults[what] += 1
        # A rank that only meets a broken collective, or nothing of it, says nothing and ends as it may.
        self.check(DISK_FULL in outcome.codes.values(), "no rank ended with 8", outcome)
        self.check(set(outcome.codes.values()) <= {DISK_FULL, PEER_LOST, 0, 1}, "a rank ended otherwise", outcome)
        errors = [line for line in outcome.output.splitlines() if line.startswith("error: ")]
        self.check(len(errors) == 1, "there must be one error line", outcome)
        self.check(str(self.run_dir) in errors[0] and "run_dir" in errors[0], "it must name run_dir", outcome)
        self.check("Traceback" not in outcome.said, "a traceback is no message", outcome)
        left = [path for pattern in ("*.partial", "*.tmp") for path in self.run_dir.rglob(pattern)]
        self.check(not left, f"left behind: {left}", outcome)
        if newest(self.run_dir):
            self.check(main(["checkpoint", "verify", str(self.run_dir)]) == 0, "verify finds damage", outcome)
        return True

    def finish(self) -> None:
        """Go on undisturbed to the end, and check what is left."""
        with self.start() as world:
            outcome = world.end()
        self.judge(outcome, "nothing")

    def wait_for_steps(self, world: World, steps: int, timeout_s: float = 60.0) -> None:
        """Wait until a start has trained so many steps, or ends, or time is up."""
        target = self._newest_before + steps

        def reached() -> bool:
            # Rows of an earlier start are there until this one has cut them.
            file = self.run_dir / "metrics.jsonl"
            is_new = file.exists() and file.stat().st_mtime_ns > world.started_ns
            return is_new and last_row(self.run_dir) >= target

        world.wait_until(reached, time.monotonic() + timeout_s)

    def note(self, what: str) -> None:
        """Remember what was done, for messages."""
        self._history.append(what)

    def _check_resumed(self, outcome: Outcome) -> int:
        """Return the step from which a start went on: that of the newest checkpoint, never an older one."""
        found = _RESUMED.search(outcome.said)
        if found is None:
            trained = last_row(self.run_dir) > self._newest_before and "saved" in outcome.said
            self.check(not (trained and self._newest_before), "it began anew", outcome)
            return self._newest_before
        step = int(found[1])
        self.check(step == self._newest_before, f"resumed from {step}, not {self._newest_before}", outcome)
        self.check("damaged" not in outcome.said, "a kill damaged a checkpoint", outcome)
        return step

    def _check_finished(self, outcome: Outcome) -> None:
        expected, found = self.rehearsal.final, final_of(self.run_dir)
        missing = expected.rows.keys() - found.rows.keys()
        wrong = [step for step, row in found.rows.items() if expected.rows.get(step) != row]
        self.check(not wrong, f"the rows of steps {wrong} differ", outcome)
        self.check(found.tensors == expected.tensors, "weights or moments differ", outcome)
        self.check(found.counters == expected.counters, f"counters differ: {found.counters}", outcome)
        self.check(found.ledger == expected.ledger, "other tokens were trained on", outcome)
        self.check(not missing, f"the rows of steps {sorted(missing)} are missing", outcome)
        untidy = self._untidy()
        self.check(not untidy, "; ".join(untidy), outcome)
        self.tally.runs += 1
        self.tally.useful += self.rehearsal.steps
        self._history.clear()
        self.run_dir = self._folder / f"run_{self.tally.runs}"

    def _untidy(self) -> list[str]:
        """Return what a run that has ended must not leave as it is."""
        steps, checkpoints = self.rehearsal.steps, self.run_dir / "checkpoints"
        kept = [f"step_{step}" for step in range(steps, 0, -EVERY)[:KEEP]]
        names = sorted(path.name for path in checkpoints.iterdir())
        latest = (checkpoints / "latest").read_text()
        summary = summary_of(self.run_dir)
        left = [path for pattern in ("*.tmp", "rank_*.pid") for path in self.run_dir.rglob(pattern)]
        wrong = {
            f"checkpoints holds {names}": names != sorted(["latest", *kept]),
            f"latest says {latest!r}": latest != f"step_{steps}\n",
            f"summary.json says {summary}": summary != ("finished", steps, self.rehearsal.final.ledger),
            f"left behind: {left}": bool(left),
            "verify finds damage": main(["checkpoint", "verify", str(self.run_dir)]) != 0,
        }
        return [text for text, is_wrong in wrong.items() if is_wrong]

    def check(self, is_right: bool, wrong: str, outcome: Outcome) -> None:
        """Fail with all that is needed to do it again."""
        if is_right:
            return
        history = "\n".join(f"  {line}" for line in self._history)
        logs = "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.run_dir.glob("logs/*.log"))
        )
        raise AssertionError(
            f"{self.layout.name}: {wrong}\n--chaos-seed={self._seed}; what was done to {self.run_dir}:\n{history}\n"
            f"--- terminal of the last start\n{outcome.output[-4000:]}\n{logs}"
        )
