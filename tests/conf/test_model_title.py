from __future__ import annotations

import pytest

from trainer.config.compose import compose, options
from trainer.config.model_title import model_title


@pytest.mark.parametrize("name", sorted(set(options()["model"]) - {"hf"}))
def test_a_model_that_ships_has_its_own_name(name: str) -> None:
    words = ("model.seq_length=64", "model.dropout=0.1", "model.recompute=full", "model.vocab_size=512")
    assert model_title(compose([f"model={name}", *words]).model) == name


@pytest.mark.parametrize(
    ("words", "title"),
    [
        ("model.hidden_size=1024", "gpt_debug, changed"),
        ("model.position=rope", "gpt_debug, changed"),
        ("model=llama3_8b model.rope_scaling.kind=linear", "llama3_8b, changed"),
        ("model.hidden_size=1024 model.name=mine", "mine"),
        ("model.name=../train", "../train"),
    ],
)
def test_a_model_that_words_changed_is_said_to_be(words: str, title: str) -> None:
    assert model_title(compose(words.split()).model) == title
