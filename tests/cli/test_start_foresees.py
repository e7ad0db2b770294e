"""What a start of `trident train` asks of the planner: once, and without depending on it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Run
from trainer.beginning import Beginning
from trainer.config.compose import compose
from trainer.config.plan import RunPlan, make_plan
from trainer.hardware import Here
from trainer.planner import foresee as foresee_module
from trainer.planner.cluster import Cluster
from trainer.planner.predict import predict
from trainer.planner.prediction import GIB, Prediction
from trainer.planner.record import PREDICTION

SMALL = ("data=synthetic", "model.vocab_size=512", "runtime.device=cpu", "train.steps=1", "checkpoint=none")
LARGE = ("model=gpt2_355m", "data.source=synthetic", "model.seq_length=256", "runtime.device=cpu")
ONLY_FOR_PLANS = (
    "planning",
    "buying",
    "planner.budget",
    "planner.picture",
    "planner.plan_screen",
    "planner.plan_report",
)


def fail(*_: object, **__: object) -> None:
    raise ZeroDivisionError("division by zero")


def with_memory(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    here = Here(cores=2, memory_bytes=int(gib * GIB))
    monkeypatch.setattr(foresee_module, "look_here", lambda environ: here)


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[RunPlan]:
    """Plans that were predicted."""
    found: list[RunPlan] = []

    def remember(plan: RunPlan, cluster: Cluster, exact: bool) -> Prediction:
        found.append(plan)
        return predict(plan, cluster, exact=exact)

    monkeypatch.setattr(foresee_module, "predict", remember)
    return found


def test_a_start_looks_and_predicts_once(
    trident: Run, predicted: list[RunPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[object] = []

    def look(environ: object) -> Here:
        looks.append(environ)
        return Here(cores=2, memory_bytes=8 * GIB)

    monkeypatch.setattr(foresee_module, "look_here", look)
    assert trident("train", *SMALL, "--dry-run").code == 0
    assert (len(looks), len(predicted)) == (1, 1)


@pytest.mark.parametrize("part", ["predict", "cluster_of", "look_here"])
def test_a_fault_of_the_planner_is_one_line_and_the_run_goes_on(
    part: str, trident: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foresee_module, part, fail)
    answer = trident("train", *SMALL, "--dry-run")
    assert answer.code == 0, answer.err
    told = [line for line in (answer.out + answer.err).splitlines() if "ZeroDivisionError" in line]
    assert told == ["predict nothing: ZeroDivisionError: division by zero"]
    Beginning(compose([*SMALL, "run_dir=run"])).by_parent()
    assert json.loads((place / "run" / "plan.json").read_text())[PREDICTION] is None


def test_a_fault_in_comparing_zero_is_one_line_and_the_run_goes_on(
    trident: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.description.cheaper_choice", fail)
    answer = trident("train", *SMALL, "--dry-run")
    assert answer.code == 0, answer.err
    assert "memory  less ZeRO is not compared: ZeroDivisionError: division by zero" in answer.out


def test_a_fault_in_looking_for_layouts_does_not_hide_why_a_run_is_refused(
    trident: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 1)
    monkeypatch.setattr("trainer.planner.refusal.offered", fail)
    monkeypatch.setattr("trainer.settling.nearest", fail)
    hint = "no other layouts are shown, because the planner failed: ZeroDivisionError: division by zero"
    for words, problem in (
        (LARGE, "a run must fit into the 1.00 GiB of a device"),
        ((*SMALL, "layout=tp3"), "layout.tensor_parallel_size"),
    ):
        answer = trident("train", *words, "--dry-run")
        assert answer.code == 2
        assert problem in answer.problems[0]
        assert answer.hints == [hint]


def test_what_needs_more_than_there_is_by_less_than_the_error_is_tried(
    trident: Run, predicted: list[RunPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train", *LARGE, "model.vocab_size=512", "--dry-run")
    with_memory(monkeypatch, 1000)
    assert trident(*words).code == 0
    needed = predict(predicted[0], foresee_module.Foresight().of(predicted[0]).cluster)  # type: ignore[arg-type]
    gib, error = needed.peak / GIB, needed.confidence.memory
    for share, code, is_tried in ((1 + error / 2, 0, False), (1 - error / 2, 0, True), (1 - 2 * error, 2, False)):
        with_memory(monkeypatch, share * gib)
        answer = trident(*words)
        assert answer.code == code
        assert ("which may not fit" in " ".join(answer.out.split())) is is_tried
    assert "must fit into" in answer.problems[0]


def test_a_run_whose_vocabulary_is_known_late_is_refused_before_anything_is_written(
    place: Path, trident: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 1)
    # As with a tokenizer that is fetched while the data are prepared.
    monkeypatch.setattr("trainer.settling.vocabulary", lambda config: None)
    answer = trident("train", *LARGE, "model.vocab_size=512", "run_dir=run")
    assert answer.code == 2
    assert "must fit into the 1.00 GiB of a device" in answer.problems[0]
    assert answer.hints
    assert not (place / "run").exists()


def test_another_vocabulary_than_was_expected_is_predicted_anew(place: Path, predicted: list[RunPlan]) -> None:
    config = compose([*SMALL, "run_dir=run"])
    foresight = foresee_module.Foresight()
    plan = Beginning(config, foresight).by_parent()
    assert predicted == [plan]
    assert foresight.of(plan).prediction is not None
    assert len(predicted) == 1
    assert foresight.of(make_plan(config, 640)).prediction is not None
    assert len(predicted) == 2


def test_a_start_does_not_import_what_only_plans_need() -> None:
    program = (
        "import sys\n"
        "from trainer.cli import main\n"
        f"assert main({['train', *SMALL, '--dry-run']!r}) == 0\n"
        "import trainer.supervise\n"
        "assert 'trainer.settling' in sys.modules\n"
        f"found = {{f'trainer.{{name}}' for name in {ONLY_FOR_PLANS!r}}} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
