"""`trident generate` as a command in one process: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.helpers.generation import texts, write_run
from tests.helpers.tiny_models import TINY

HERE = ("runtime.device=cpu", "temperature=0")


def test_one_text_is_its_prompt_and_what_follows(trident: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    answer = trident("generate", "run", "prompt=def ", "max_tokens=7", *HERE)
    assert answer.code == 0
    assert answer.out == f"{texts(tmp_path / 'run', max_tokens=7)[0]}\n"
    assert answer.err == "cache  0.0 MiB for keys and values of 1 x 10 tokens\n"


def test_several_texts_are_numbered_and_kept_in_a_file(trident: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "more.txt").write_text("x\n\nlonger one\n")
    words = ("checkpoint=run", "prompt=def ", "prompts=more.txt", "num_samples=2", "batch_size=2", "output=out.jsonl")
    answer = trident("generate", *words, "max_tokens=5", *HERE)
    prompts = [prompt for prompt in ("def ", "x", "longer one") for _ in range(2)]
    expected = [texts(tmp_path / "run", prompt, max_tokens=5)[0] for prompt in prompts]
    assert answer.out == "".join(f"--- {index} of 6\n{text}\n" for index, text in enumerate(expected, 1))
    held = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert held == [
        {"prompt": prompt, "seed": index % 2, "text": text[len(prompt) :], "tokens": 5, "end": "length"}
        for index, (prompt, text) in enumerate(zip(prompts, expected, strict=True))
    ]


def test_pieces_come_while_the_text_grows(trident: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "run")
    pieces: list[str] = []
    monkeypatch.setattr("trainer.generation.generate.write", pieces.append)
    assert trident("generate", "run", "prompt=def ", "max_tokens=12", *HERE).code == 0
    assert pieces[0] == "def "
    assert len([piece for piece in pieces if piece]) > 4, "the whole text came at once"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["prompt=" + "x" * 24], "prompt and max_tokens must fit into model.seq_length (24 tokens), but"),
        (["prompt=a", "prompt=" + "y" * 30], "prompt 2 and max_tokens must fit into model.seq_length (24 tokens), but"),
        (["prompts=more.txt", "max_tokens=20"], "more.txt, line 3 and max_tokens must fit"),
        (["prompts=less.txt"], "prompts must be a file that can be read, but "),
        (["--chat"], "chat=true needs a tokenizer with a chat template, but this one has none"),
        (["eos_ids=3,257"], "eos_ids must be below the model's vocabulary (257), but one is 257"),
        (["output=nowhere/out.jsonl"], "output must be a file in a folder that exists, but "),
        (["layout=tp2_sp"], "layout.sequence_parallel must be false to generate"),
        (["layout=pp2_dualpipev"], "layout.pipeline_schedule must be 1f1b to generate"),
        (["layout=tp2_dp2"], "layout.data_parallel_size must be 1 to generate, but is 2"),
        (["layout=pp4"], "model.num_layers (2) must be at least layout.pipeline_parallel_size (4)"),
        (["layout=tp3"], "model.num_attention_heads (4) must be divisible by layout.tensor_parallel_size (3)"),
        (["layout.tensor_parallel_size=0"], "layout.tensor_parallel_size must be at least 1, but is 0"),
        (["runtime.threads_per_rank=0"], "runtime.threads_per_rank must be at least 1, but is 0"),
        (["runtime.timeout_s=-5"], "runtime.timeout_s must be at least 1, but is -5"),
        (["runtime.compile=true"], "runtime.compile has no effect on a model that is used without training"),
        (["runtime.check_replicas_every=3"], "runtime.check_replicas_every has no effect on a model that is used"),
        (["layout.tensor_parallel=2"], "there is no key 'layout.tensor_parallel'"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_loaded(
    words: list[str], problem: str, refused: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "more.txt").write_text("a\n\nlonger\n")
    monkeypatch.setitem(sys.modules, "trainer.errands", None)
    monkeypatch.setattr("trainer.launcher.errand.run_ranks", None)
    answer = refused("generate", "run", "output=out.jsonl", *HERE, *words)
    assert answer.problems[0].startswith(problem)
    assert answer.out == ""


def test_ranks_are_started_with_the_same_words(trident: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "run", model=replace(TINY, num_layers=2))
    started: list[object] = []

    def run_errand(size: int, words: object) -> int:
        started.append((size, words))
        return 7

    monkeypatch.setattr("trainer.launcher.errand.run_errand", run_errand)
    words = ["run", "layout=tp2_pp2", "prompt=a b", "--top-k", "3"]
    assert trident("generate", *words).code == 7
    assert started == [(4, ["generate", *words])]
