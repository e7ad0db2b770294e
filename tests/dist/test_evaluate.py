"""Evaluation over the ranks of a layout, and while a run trains: the same scores everywhere."""

from __future__ import annotations

import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.apart import Ended, Rank, start_apart
from tests.helpers.tasks import NAMES, write_tasks

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]

LAYOUTS = {"tp2_pp2": 4, "dp2": 2}
HERE = ("runtime.device=cpu", "runtime.threads_per_rank=1")
MODEL = (
    *("model.num_layers=2", "model.hidden_size=16", "model.num_attention_heads=2", "model.seq_length=64"),
    *("tokenizer.kind=bytes", "batch.global_batch_size=4", "data.validation_fraction=0.2", "logging.wandb=disabled"),
)
STEPS = 2


def run(folder: Path, verb: str, size: int, *words: str, others: tuple[str, ...] = ()) -> Ended:
    """Run a command in ranks; those after the first have `others` besides."""
    # Loaded once, and not by each rank.
    importlib.import_module("trainer.evaluation.harness")
    names = importlib.import_module("trainer.evaluation.task_names")
    logs = folder / "tmp"
    logs.mkdir(exist_ok=True)

    def prepare() -> None:
        tempfile.tempdir = str(logs)
        # The harness's own table takes seconds to read.
        names.WITH_DEFAULTS = False  # type: ignore[attr-defined]

    ranks = [Rank((*words, *HERE, *(others if rank else ())), verb=verb, before=prepare) for rank in range(size)]
    return start_apart(ranks, Path(tempfile.mkdtemp(dir=folder)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tasks, and a run of two stages that ran them at its evaluation."""
    folder = tmp_path_factory.mktemp("evaluate")
    tasks = write_tasks(folder / "tasks")
    texts = folder / "texts"
    texts.mkdir()
    for number in range(40):
        (texts / f"{number}.txt").write_text(f"Document {number} of many: " + "a week has seven days; " * (number % 9))
    ended = run(
        folder,
        "train",
        2,
        *MODEL,
        *("layout=pp2", f"run_dir={folder / 'run'}", f"data.cache_dir={folder / 'cache'}"),
        *("data.source=files", f"data.files=[{texts}/*.txt]", f"train.steps={STEPS}", f"train.eval_every={STEPS}"),
        *(f"eval.tasks=[{','.join(NAMES)}]", f"eval.tasks_include_path={tasks}", "eval.tasks_limit=3"),
    )
    assert ended.codes == [0, 0], ended.said
    return folder


def scores(folder: Path, layout: str, *words: str) -> dict[str, Any]:
    size = LAYOUTS.get(layout, 1)
    output = folder / f"{layout}.json"
    tasks = (f"include_path={folder / 'tasks'}", f"tasks={','.join(NAMES)}", "limit=3")
    ended = run(folder, "evaluate", size, str(folder / "run"), f"layout={layout}", f"output={output}", *tasks, *words)
    assert ended.codes == [0] * size, ended.said
    assert list((folder / "tmp").iterdir()) == [], "logs of ranks that did well are left"
    found: dict[str, Any] = json.loads(output.read_text())
    return found


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[str, Any]:
    return scores(place, "single", "part=validation", "data.text_key=text")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_do_not_depend_on_the_layout(layout: str, place: Path, alone: dict[str, Any]) -> None:
    found = scores(place, layout, "part=validation", "data.text_key=text", "batch_size=2")
    assert found["layout"] != alone["layout"]
    counts = ("documents", "tokens", "bytes")
    assert [found["data"][name] for name in counts] == [alone["data"][name] for name in counts]
    assert found["scores"].keys() == alone["scores"].keys()
    for name, value in alone["scores"].items():
        # fp32 sums in another order; what is counted must be equal.
        exact = "acc" in name or "exact" in name
        assert found["scores"][name] == (value if exact else pytest.approx(value, rel=1e-5)), name


def test_tasks_while_a_run_trains_score_as_its_checkpoint_does(place: Path, alone: dict[str, Any]) -> None:
    rows = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    names = {name for name in alone["scores"] if name.count("/") == 2}
    assert {"eval/quiz/acc", "eval/finish/exact_match", "eval/prose/bits_per_byte"} <= names
    assert [names <= row.keys() for row in rows] == [row["step"] == STEPS for row in rows]
    for name in names:
        assert rows[-1][name] == pytest.approx(alone["scores"][name], rel=1e-5), name


@pytest.mark.parametrize(
    ("words", "others", "line"),
    [
        (["layout=dp2"], ("stride=3",), "stride"),
        (["layout=tp2", "tasks=far"], (), "tasks must name tasks that exist, but there is no 'far'"),
    ],
)
def test_ranks_that_disagree_or_cannot_go_on_say_so_once(
    words: list[str], others: tuple[str, ...], line: str, place: Path
) -> None:
    ended = run(place, "evaluate", 2, str(place / "run"), *words, others=others)
    assert ended.codes == [2, 2], ended.said
    assert len(ended.errors) == 1, ended.said
    assert line in ended.errors[0]
    assert "Traceback" not in "".join(ended.said)
