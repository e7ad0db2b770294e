"""A vocab.json and a merges.txt are the tokenizer that `transformers` makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.data.data_fixtures import config, told, write_text
from trainer.config.schema import TokenizerConfig
from trainer.data.pretrained_tokenizer import load_pretrained, pretrained_file, pretrained_identity
from trainer.data.tokenizer import train_bpe

TEXT = "The quick brown fox; it's 12 jumps\n\n over ünïcode 🙂 <|endoftext|> <|user|> the lazy dog.  "


def folder_of(path: Path, **settings: object) -> Path:
    """Write the files of a trained BPE as GPT-2 has them."""
    path.mkdir()
    trained = json.loads(
        train_bpe(["The quick brown fox jumps over the lazy dog, it's the 12th. " * 9], 320)._tokenizer.to_str()
    )
    write_text(path / "vocab.json", json.dumps(trained["model"]["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in trained["model"]["merges"])
    write_text(path / "merges.txt", f"#version: 0.2\n{merges}\n")
    if settings:
        write_text(path / "tokenizer_config.json", json.dumps(settings))
    return path


def pretrained(path: Path) -> TokenizerConfig:
    return config(tokenizer__kind="pretrained", tokenizer__path=str(path)).tokenizer


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"},
        {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True, "pad_token": "<|pad|>"},
        {"eos_token": {"__type": "AddedToken", "content": "<|endoftext|>"}, "bos_token": "<|user|>"},
        {"additional_special_tokens": ["<|user|>", "<|more|>"]},
    ],
)
def test_ids_are_those_of_transformers(tmp_path: Path, settings: dict[str, object]) -> None:
    from transformers import GPT2Tokenizer

    folder = folder_of(tmp_path / "tok", **settings)
    own, other = load_pretrained(pretrained(folder)), GPT2Tokenizer.from_pretrained(str(folder))
    assert own.encode(TEXT) == other(TEXT, add_special_tokens=False)["input_ids"]
    assert own.vocab_size == len(other)
    assert own.eos_id == other.eos_token_id
    assert own.decode(own.encode("It's ünïcode")).strip() == "It's ünïcode"


def test_added_tokens_have_the_ids_that_are_told(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "tok")
    count = load_pretrained(pretrained(folder)).vocab_size
    write_text(folder / "added_tokens.json", json.dumps({"<|b|>": count + 1, "<|a|>": count}))
    own = load_pretrained(pretrained(folder))
    assert own.encode("<|a|><|b|>") == [count, count + 1]
    write_text(folder / "added_tokens.json", json.dumps({"<|b|>": count + 7}))
    assert told(lambda: load_pretrained(pretrained(folder))) == (
        f"tokenizer.path={folder} must have token '<|b|>' as id {count + 7}, but behind vocab.json it is {count}"
    )


def test_identity_follows_the_merges(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "tok")
    before = pretrained_identity(pretrained(folder))
    write_text(folder / "merges.txt", "#version: 0.2\n")
    assert pretrained_identity(pretrained(folder)) != before
    assert pretrained_file(str(folder)) == folder / "vocab.json"


def test_a_tokenizer_json_wins(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "tok")
    write_text(folder / "tokenizer.json", "{}")
    assert pretrained_file(str(folder)) == folder / "tokenizer.json"


def test_a_tokenizer_that_divides_text_in_another_way(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "tok", tokenizer_class="Qwen2Tokenizer")
    assert told(lambda: load_pretrained(pretrained(folder))) == (
        f"tokenizer.path={folder} must have a tokenizer.json, since vocab.json and merges.txt do not say how a "
        "Qwen2Tokenizer divides a text"
    )


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("vocab.json", "{", "must have a vocab.json and a merges.txt that fit, but: "),
        ("merges.txt", "x y z\n", "must have a vocab.json and a merges.txt that fit, but: "),
        ("merges.txt", "Q Q\n", "must have a vocab.json and a merges.txt that fit, but: "),
        ("vocab.json", '{"a": 0}', "must have a"),
        ("added_tokens.json", "{", "added_tokens.json must be JSON, but is not: "),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, name: str, content: str, said: str) -> None:
    folder = folder_of(tmp_path / "tok")
    write_text(folder / name, content)
    assert said in told(lambda: load_pretrained(pretrained(folder)))


def test_a_vocabulary_without_all_bytes(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "tok")
    write_text(folder / "vocab.json", '{"a": 0}')
    write_text(folder / "merges.txt", "#version: 0.2\n")
    assert told(lambda: load_pretrained(pretrained(folder))) == (
        f"tokenizer.path={folder} must have all 256 bytes in vocab.json, but 255 are missing"
    )


def test_a_sentencepiece_model_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    with pytest.raises(Exception, match=r"holds only a sentencepiece model, tokenizer\.model") as caught:
        pretrained_file(str(tmp_path))
    assert caught.value.hints == (  # type: ignore[attr-defined]
        f'write one with python -c "from transformers import AutoTokenizer as A; A.from_pretrained({str(tmp_path)!r})'
        f'.save_pretrained({str(tmp_path)!r})" (needs pip install sentencepiece)',
    )
