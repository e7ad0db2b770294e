from __future__ import annotations

import os

import pytest

from tests.cli.conftest import Answer, Run, check_style

# A model whose heads, key/value heads and MLP all divide by 1, 2 and 4.
SMALL = ("model.num_attention_heads=4", "model.num_key_value_heads=null", "model.hidden_size=64")
SYNTHETIC = ("data=synthetic", "model.vocab_size=512")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        pytest.param(
            ["model.num_attention_heads=12", "model.hidden_size=768", "layout.tensor_parallel_size=8"],
            [
                "model.num_attention_heads (12) must be divisible by layout.tensor_parallel_size (8)",
                "1, 2, 3, 4, 6 or 12",
            ],
            id="heads over tp",
        ),
        pytest.param(
            ["model.num_layers=3", "layout.pipeline_parallel_size=4"],
            ["model.num_layers (3) must be at least layout.pipeline_parallel_size (4)", "pipeline_parallel_size <= 3"],
            id="layers over pp",
        ),
        pytest.param(
            ["batch.global_batch_size=10", "batch.micro_batch_size=4"],
            ["batch.global_batch_size (10) must be divisible by batch.micro_batch_size (4)", "use 8 or 12"],
            id="batch over ranks",
        ),
        pytest.param(
            [*SMALL, "batch.global_batch_size=9", "layout=dp2"],
            ["batch.global_batch_size (9) must be divisible by", "layout.data_parallel_size (2) = 2; use 8 or 10"],
            id="batch over replicas",
        ),
        pytest.param(
            [*SMALL, "zero.stage=2", "layout.pipeline_parallel_size=2"],
            [
                "zero.stage=2 needs layout.pipeline_parallel_size=1, but it is 2",
                "use zero.stage=1",
                "tensor_parallel_size=2",
            ],
            id="ZeRO-2 with stages",
        ),
        pytest.param(
            [*SMALL, "zero=stage3", "layout.pipeline_parallel_size=4"],
            [
                "zero.stage=3 needs layout.pipeline_parallel_size=1, but it is 4",
                "use zero.stage=1",
                "tensor_parallel_size=4",
            ],
            id="ZeRO-3 with stages",
        ),
        pytest.param(
            ["zero.stage=0", "zero.offload=cpu"],
            ["zero.offload=cpu needs zero.stage >= 1, but it is 0; use zero.stage=1, or zero.offload=none"],
            id="offload without ZeRO",
        ),
        pytest.param(
            ["zero.stage=2", "zero.offload=nvme", "zero.nvme_path=/tmp"],
            ["zero.offload=nvme needs zero.stage=3, but it is 2; use zero.stage=3, or zero.offload=cpu"],
            id="nvme below ZeRO-3",
        ),
        pytest.param(
            ["zero.stage=3", "zero.offload=nvme"],
            ["zero.offload=nvme needs zero.nvme_path"],
            id="nvme without a path",
        ),
        pytest.param(
            ["zero.stage=1", "zero.offload=cpu", "zero.offload_parameters=true"],
            ["zero.offload_parameters=true needs zero.stage=3, but it is 1"],
            id="parameters offloaded below ZeRO-3",
        ),
        pytest.param(
            ["zero.stage=0", "precision.dtype=bf16"],
            ["zero.stage=0 needs precision.dtype=fp32, but it is bf16"],
            id="ZeRO-0 in half precision",
        ),
        pytest.param(
            ["train.stesp=3"],
            ["there is no key 'train.stesp'; did you mean 'train.steps'?"],
            id="unknown key",
        ),
        pytest.param(["optimiser.lr=1"], ["did you mean 'optimizer.lr'?"], id="unknown group of a key"),
        pytest.param(["modle=gpt2_124m"], ["there is no key 'modle'; did you mean 'model'?"], id="unknown group"),
        pytest.param(
            ["model=gpt2_124"], ["there is no model=gpt2_124; did you mean model=gpt2_124m?"], id="unknown option"
        ),
        pytest.param(["experiment=nothing"], ["there is no experiment=nothing; choose from"], id="unknown experiment"),
        pytest.param(["train.steps=ten"], ["train.steps must be an integer, but is 'ten'"], id="a word for an integer"),
        pytest.param(
            ["train.steps=1.5"], ["train.steps must be an integer, but is 1.5"], id="a fraction for an integer"
        ),
        pytest.param(["optimizer.lr=fast"], ["optimizer.lr must be a number, but is 'fast'"], id="a word for a number"),
        pytest.param(["precision.dtype=int8"], ["must be one of fp32, bf16, fp16, but is 'int8'"], id="no such choice"),
        pytest.param(["model.bias=2"], ["model.bias must be true or false, but is 2"], id="a number for a truth"),
        pytest.param(["train.steps=0"], ["train.steps must be at least 1, but is 0"], id="out of range"),
        pytest.param(["optimizer.lr=nan"], ["optimizer.lr must be greater than 0, but is nan"], id="not a number"),
        pytest.param(["train.steps"], ["'train.steps' must be written key=value"], id="no value"),
        pytest.param(
            ["--steps=3"],
            ["there is no option '--steps'; did you mean the setting 'train.steps', as in train.steps=3?"],
            id="an option",
        ),
        pytest.param(["+train.extra=3"], ["there is no key 'train.extra'"], id="an added key"),
        pytest.param(["run_dir=[a"], ["cannot be read as key=value"], id="bad grammar"),
        pytest.param(
            ["data=synthetic"], ["data.source=synthetic needs model.vocab_size"], id="ids without a vocabulary"
        ),
        pytest.param(
            ["tokenizer=bytes", "model.vocab_size=1000"],
            ["the byte tokenizer (257) must equal model.vocab_size (1000)", "model.vocab_size=257"],
            id="vocabulary larger than the byte tokenizer's",
        ),
        pytest.param(["runtime.device=cuda"], ["runtime.device=cuda needs a CUDA device"], id="no GPU"),
    ],
)
def test_refused(words: list[str], parts: list[str], refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.launcher.environment.gpu_count", lambda environ: 0)
    answer = refused("train", *words)
    assert len(answer.problems) == 1
    for part in parts:
        assert part in answer.problems[0]


def test_all_problems_are_told_at_once(refused: Run) -> None:
    answer = refused("train", "train.stesp=3", "optimizer.lr=fast", "model=gpt2_124", "layout.tensor_parallel_size=x")
    assert len(answer.problems) == 4
    answer = refused(
        *("train", "model.num_layers=1", "layout.pipeline_parallel_size=2", "layout.tensor_parallel_size=3"),
        *("zero.stage=3", "train.steps=0", "optimizer.lr=-1", "batch.global_batch_size=7", "batch.micro_batch_size=2"),
    )
    keys = ("model.num_attention_heads", "model.num_layers", "batch.global_batch_size", "zero.stage", "train.steps")
    for key in (*keys, "optimizer.lr"):
        assert any(problem.startswith(key) for problem in answer.problems), key


@pytest.mark.parametrize("verb", ["train", "data"])
def test_every_verb_with_a_config_refuses_alike(verb: str, refused: Run) -> None:
    assert refused(verb, "train.stesp=3").problems == ["there is no key 'train.stesp'; did you mean 'train.steps'?"]


@pytest.mark.parametrize(
    ("world", "layout", "part"),
    [
        (3, "tp2", "the number of ranks (3) must be divisible by"),
        (4, "dp2", "= 2 must equal the number of ranks (4); use layout.data_parallel_size=4"),
        (2, "pp4", "start 4 ranks (layout.data_parallel_size=1)"),
    ],
)
def test_the_launched_world_must_be_the_mesh(
    world: int, layout: str, part: str, refused: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", str(world))):
        monkeypatch.setenv(name, value)
    answer = refused("train", *SYNTHETIC, f"layout={layout}", "batch.global_batch_size=48")
    assert part in answer.problems[0]


def test_auto_names_the_worlds_that_keep_the_batch(refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "10")):
        monkeypatch.setenv(name, value)
    answer = refused("train", *SYNTHETIC, "layout=tp2", "layout.data_parallel_size=auto", "batch.global_batch_size=48")
    assert answer.problems == [
        "layout.data_parallel_size=auto makes 5 replicas of 10 ranks, but batch.global_batch_size (48) must be "
        "divisible by batch.micro_batch_size (1) x 5; start 8 or 12 ranks (because every replica must read as many "
        "sequences as the others, or gradients would be averages of different weights)"
    ]


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_of_many_ranks_only_the_first_speaks(launcher: str, trident: Run) -> None:
    def answer_of(rank: int) -> Answer:
        names = {
            "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
            "srun": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
        }
        # Not with monkeypatch, which would put back what the command publishes.
        os.environ.pop("RANK", None)
        for name, value in zip(names[launcher], (rank, 2, rank), strict=True):
            os.environ[name] = str(value)
        if launcher == "srun":
            os.environ["SLURM_STEP_ID"] = "0"
        return trident("train", "layout=tp2", "train.stesp=3")

    first, second = answer_of(0), answer_of(1)
    check_style(first)
    assert (first.code, second.code) == (2, 2)
    assert (second.out, second.err) == ("", "")


def test_an_incomplete_launcher_environment(refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # Told by whichever rank it is: there may be no rank 0.
    monkeypatch.setenv("RANK", "3")
    assert "but WORLD_SIZE and LOCAL_RANK are not set (RANK=3)" in refused("train").problems[0]
