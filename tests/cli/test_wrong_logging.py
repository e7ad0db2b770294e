"""What is asked of metrics and cannot be given is told before a rank starts."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.cli.conftest import Run

SYNTHETIC = ("data=synthetic", "model.vocab_size=512", "data.synthetic_tokens=8192", "model.seq_length=16")
TEXTS = ("tokenizer=bytes", "data.source=files", "data.files=[*.txt]", "train.eval_every=5", "eval.samples=1")
LAYOUTS = pytest.mark.parametrize("layout", ["single", "tp2"])


@LAYOUTS
def test_tensorboard_that_is_not_installed(layout: str, refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    answer = refused("train", *SYNTHETIC, f"layout={layout}", "logging.tensorboard=true")
    assert answer.problems == ["logging.tensorboard=true needs the package tensorboard, but it is not installed"]
    assert answer.hints[0] == "pip install tensorboard"


@LAYOUTS
def test_texts_that_do_not_fit(layout: str, trident: Run, refused: Run, place: Path) -> None:
    for index in range(40):
        (place / f"{index}.txt").write_text(f"some text to train on, part {index}. " * 10)
    words = (*TEXTS, f"layout={layout}", "data.validation_fraction=0.3", "model.seq_length=16", "eval.max_tokens=8")
    # Prepared beforehand, so that the refusal leaves no trace.
    assert trident("data", *words).code == 0
    answer = refused("train", *words, "eval.prompts=[this is a long prompt]")
    assert answer.problems == [
        "eval.prompts[0] (21 tokens) and eval.max_tokens (8) must fit into model.seq_length (16); shorten one of them"
    ]


def test_a_console_that_does_not_exist(refused: Run) -> None:
    answer = refused("train", *SYNTHETIC, "logging.console=quite")
    assert answer.problems == [
        "logging.console must be one of auto, plain, quiet, but is 'quite'; did you mean 'quiet'?"
    ]


def test_an_unknown_flag_is_still_one(refused: Run) -> None:
    assert refused("train", *SYNTHETIC, "--quite").problems[0].startswith("there is no option '--quite'")
