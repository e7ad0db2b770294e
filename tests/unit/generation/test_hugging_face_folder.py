"""`trident generate` with a Hugging Face folder as it is: no import, its own tokenizer, transformers' greedy text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers.generation import texts
from tests.helpers.hf_families import TINY, Tiny, hf_model
from tests.helpers.hf_oracle import loaded
from trainer.config.schema import TokenizerConfig, TokenizerKind
from trainer.data.pretrained_tokenizer import load_pretrained
from trainer.data.tokenizer import train_bpe
from trainer.errors import CheckpointError, ConfigError, TridentError
from trainer.generation.options import GenerateOptions
from trainer.generation.task import settle

PROMPT = "some text"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models") / "mine"
    hf_model(Tiny("LlamaForCausalLM", {**TINY["llama"].arguments, "vocab_size": 307})).save_pretrained(place)
    train_bpe(["some text, and some more of it"], 300).save(place)
    return place


@pytest.mark.filterwarnings("ignore")
def test_greedy_text_is_that_of_transformers(folder: Path) -> None:
    tokenizer = load_pretrained(TokenizerConfig(TokenizerKind.pretrained, path=str(folder)))
    ids = torch.tensor([tokenizer.encode(PROMPT)])
    model = loaded(folder)
    model.generation_config.eos_token_id = None
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, pad_token_id=0)
    drawn = found[0, ids.shape[1] :].tolist()
    ends = [index for index, token in enumerate(drawn) if token in (tokenizer.eos_id, 2)]
    assert len(set(drawn)) > 3
    expected = tokenizer.decode(drawn[: ends[0]] if ends else drawn)
    assert texts(folder, PROMPT, max_tokens=40) == [PROMPT + expected]


def configured(folder: Path, **changed: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def tokenizer_of(folder: Path, size: int) -> None:
    train_bpe([f"word{index * index} {chr(97 + index % 26) * 3}" for index in range(size)], size).save(folder)


FAULTS: dict[str, tuple[Callable[[Path], object], type[TridentError], str]] = {
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), ConfigError, "has none; name one: tokenizer=PATH"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), CheckpointError, "must hold weights"),
    "odd heads": (lambda f: configured(f, num_attention_heads=3), ConfigError, "must be divisible by"),
    "unknown": (lambda f: configured(f, architectures=["OddModel"]), ConfigError, "the architecture must be one of"),
    "larger tokenizer": (lambda f: tokenizer_of(f, 700), ConfigError, "must have at most vocab_size (307) ids"),
    "fewer positions": (
        lambda f: configured(f, max_position_embeddings=2),
        ConfigError,
        "must fit into model.seq_length (2 tokens), but the prompt has",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_cannot_write_is_refused_before_weights_are_read(
    fault: str, folder: Path, tmp_path: Path
) -> None:
    spoil, kind, words = FAULTS[fault]
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    spoil(mine)
    with pytest.raises(kind) as caught:
        settle(GenerateOptions(checkpoint=str(mine), prompt=(PROMPT,)))
    assert words in str(caught.value)
