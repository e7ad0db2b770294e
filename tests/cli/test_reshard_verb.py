from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.unit.checkpoint.reshard_fixtures import make_run


@pytest.fixture
def run(place: Path) -> Path:
    make_run(place / "run")
    return place / "run"


@pytest.mark.parametrize(
    ("words", "problems"),
    [
        pytest.param(
            ["layout.tensor_parallel_size=8"],
            ["model.num_attention_heads (4) must be divisible by layout.tensor_parallel_size (8); use 1, 2 or 4"],
            id="heads",
        ),
        pytest.param(
            ["layout=pp4"], ["model.num_layers (2) must be at least layout.pipeline_parallel_size (4)"], id="pp"
        ),
        pytest.param(
            ["layout=dp8"],
            ["batch.global_batch_size (4) must be divisible by batch.micro_batch_size (1) x"],
            id="batch",
        ),
        pytest.param(
            ["layout=pp2", "zero.stage=3"],
            ["zero.stage=3 needs layout.pipeline_parallel_size=1, but it is 2"],
            id="zero",
        ),
        pytest.param(
            ["layout=pp4", "zero.offload_parameters=true", "layout.tensor_parallel_size=3"],
            [
                "model.num_attention_heads (4)",
                "model.num_layers (2)",
                "zero.offload_parameters=true needs zero.stage=3",
            ],
            id="all at once",
        ),
        pytest.param(
            ["layout.tensor_paralel_size=2"],
            ["there is no key 'layout.tensor_paralel_size'; did you mean 'layout.tensor_parallel_size'?"],
            id="mistyped key",
        ),
        pytest.param(
            ["layout=tp2_tp3"],
            ["layout=tp2_tp3 must name each part once, but names tp twice"],
            id="mistyped layout",
        ),
        pytest.param(
            ["layout=tp2", "model.num_layers=4", "optimizer.lr=1", "model=gpt2_124m", "batch.global_batch_size=8"],
            [
                "'model' cannot be changed here; only layout, zero and batch.micro_batch_size can",
                "'model.num_layers' cannot be changed here",
                "'optimizer.lr' cannot be changed here",
                "'batch.global_batch_size' cannot be changed here",
            ],
            id="other keys",
        ),
        pytest.param(
            ["layout.tensor_parallel_size=two"], ["layout.tensor_parallel_size must be an integer"], id="type"
        ),
        pytest.param(
            ["zero.nvme_path=${run_dir}"], ["zero.nvme_path must be a value here, but is '${run_dir}'"], id="reference"
        ),
    ],
)
def test_a_layout_that_cannot_be(refused: Run, run: Path, words: list[str], problems: list[str]) -> None:
    answer = refused("reshard", str(run), "target", *words)
    for problem in problems:
        assert any(line.startswith(problem) for line in answer.problems), answer.err


@pytest.mark.parametrize(
    "words",
    [[], ["run"], ["run", "target"], ["run", "layout=tp2"], ["run", "layout.data_parallel_size=2", "zero=stage1"]],
)
def test_usage(refused: Run, run: Path, words: list[str]) -> None:
    answer = refused("reshard", *words)
    assert answer.problems[0].startswith("usage must be `trident reshard SRC DST key=value ...`, but is `reshard")
    assert "--help" in answer.hints[0]


def test_help(trident: Run) -> None:
    answer = trident("reshard", "--help")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("usage: trident reshard SRC DST")


def test_a_target_that_holds_a_run(refused: Run, run: Path) -> None:
    assert "config.yaml is there; change DST" not in refused("reshard", "run", "run", "layout=tp2").err
    assert (
        f"DST must not hold a run yet, but {run / 'checkpoints' / 'step_7'} is there; change DST"
        in refused("reshard", "run", "run", "layout=tp2").problems
    )


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "checkpoints/step_3/x"])
def test_a_target_that_holds_a_part_of_a_run(refused: Run, run: Path, name: str) -> None:
    (run.parent / "target" / name).parent.mkdir(parents=True)
    (run.parent / "target" / name).write_text("x")
    held = name.removesuffix("/x")
    answer = refused("reshard", "run", "target", "layout=tp2")
    assert answer.problems == [f"DST must not hold a run yet, but {run.parent / 'target' / held} is there; change DST"]


@pytest.mark.parametrize("name", ["checkpoints", "target/checkpoints/step_7"])
def test_a_target_that_is_no_run_folder(refused: Run, run: Path, name: str) -> None:
    answer = refused("reshard", "run", name, "layout=tp2")
    assert answer.problems[0].startswith("DST must be the folder of a run, in which checkpoints/step_<N> is made")


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_target_that_is_a_file(refused: Run, run: Path, name: str) -> None:
    (run.parent / "file").write_text("x")
    answer = refused("reshard", "run", name, "layout=tp2")
    assert "DST becomes the run_dir, and run_dir must be a folder, but" in answer.err
    assert "is a file" in answer.err


def test_a_target_that_is_empty_is_taken(trident: Run, run: Path) -> None:
    (run.parent / "target").mkdir()
    answer = trident("reshard", "run", "target", "layout=tp2")
    assert answer.code == 0
    assert f"wrote {run.parent / 'target' / 'checkpoints' / 'step_7'} as of 2 ranks" in answer.out
    again = trident("reshard", "run", "target", "layout=tp2")
    assert again.code == 2
