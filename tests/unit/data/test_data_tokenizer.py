from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import huggingface_hub
import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.unit.data.data_fixtures import config, told, write_text
from trainer.config.schema import TokenizerConfig, TokenizerKind
from trainer.data import tokenizer as tokenizer_module
from trainer.data.end_of_text import END_OF_TEXT
from trainer.data.pretrained_tokenizer import load_pretrained, pretrained_file
from trainer.data.tokenizer import ByteTokenizer, FileTokenizer, Tokenizer, load_tokenizer, train_bpe
from trainer.data.trained_tokenizer import make_tokenizer
from trainer.errors import DataError

TEXTS = [
    "def add(left, right):\n    return left + right\n\n\nclass Adder:\n    pass\n" * 20,
    "Größe, naïveté, 数学, 🙂👩‍👩‍👧 und Zeilen\r\n\tmit  Abständen   \n",
]
HARD = [
    "",
    " ",
    "\n\n \t",
    "plain",
    "é e\u0301 ß",
    "日本語テキスト",
    "🙂👩‍👩‍👧🏳️‍🌈",
    "\x00\x7f",
    "a\r\nb",
    "  two  spaces  ",
]


@pytest.fixture(scope="module")
def bpe() -> FileTokenizer:
    return train_bpe(TEXTS, 300)


def pretrained(path: str, eos_token: str | None = None) -> FileTokenizer:
    return load_pretrained(TokenizerConfig(TokenizerKind.pretrained, path=path, eos_token=eos_token))


def word_level(folder: Path, ids: dict[str, int], *special: str) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(list(special))
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return made


def test_bytes_are_the_ids_of_utf8() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("aé\n") == [97, 195, 169, 10]
    assert tokenizer.encode_batch(["a", "", "b"]) == [[97], [], [98]]
    assert tokenizer.vocab_size == 257
    assert tokenizer.eos_id == 256
    assert tokenizer.decode([97, 256, 195, 169]) == "aé"
    assert tokenizer.decode([195]) == "\ufffd"


@pytest.mark.parametrize("text", HARD)
def test_bpe_gives_the_text_back(bpe: FileTokenizer, text: str) -> None:
    assert bpe.decode(bpe.encode(text)) == text
    assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == text


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_from_ids_in_range(bpe: FileTokenizer, text: str) -> None:
    assume(END_OF_TEXT not in text)
    tokenizers: tuple[Tokenizer, ...] = (bpe, ByteTokenizer())
    for tokenizer in tokenizers:
        ids = tokenizer.encode(text)
        assert all(0 <= i < tokenizer.vocab_size and i != tokenizer.eos_id for i in ids)
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode_batch([text]) == [ids]


def test_a_text_that_was_trained_on_takes_fewer_ids_than_bytes(bpe: FileTokenizer) -> None:
    assert len(bpe.encode(TEXTS[0])) < len(TEXTS[0].encode()) / 2
    assert bpe.vocab_size == 300


def test_training_is_the_same_for_the_same_text(tmp_path: Path, bpe: FileTokenizer) -> None:
    def saved(name: str, tokenizer: Tokenizer) -> bytes:
        (tmp_path / name).mkdir()
        tokenizer.save(tmp_path / name)
        return (tmp_path / name / "tokenizer.json").read_bytes()

    first = saved("first", bpe)
    assert saved("again", train_bpe(iter(TEXTS), 300)) == first
    assert saved("other text", train_bpe(TEXTS[1:], 300)) != first
    assert saved("other size", train_bpe(TEXTS, 299)) != first


def test_a_small_text_gives_a_small_vocabulary() -> None:
    tokenizer = train_bpe(["ab ab"], 1000)
    assert tokenizer.vocab_size == 259  # 256 bytes, the end, "ab" and " ab"
    assert train_bpe([], 1000).vocab_size == 257
    assert train_bpe([], 1000).decode(train_bpe([], 1000).encode("é")) == "é"


def test_training_reads_a_bounded_amount_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "TRAINING_CHARACTERS", 5)

    def texts() -> Iterator[str]:
        yield "abab"
        yield "cdcdcd"
        raise AssertionError("enough was read")

    tokenizer = train_bpe(texts(), 1000)
    assert len(tokenizer.encode("ab")) == 1
    assert len(tokenizer.encode("cd")) == 2


def test_lone_surrogates_become_question_marks(bpe: FileTokenizer) -> None:
    tokenizers: tuple[Tokenizer, ...] = (bpe, ByteTokenizer())
    for tokenizer in tokenizers:
        assert tokenizer.decode(tokenizer.encode("a\ud800é")) == "a?é"
        assert tokenizer.encode_batch(["a\udcff"]) == [tokenizer.encode("a?")]
    assert train_bpe(["a\ud800" * 9, "é"], 300).vocab_size > 257


def test_special_tokens_end_documents_and_are_not_shown(bpe: FileTokenizer) -> None:
    assert bpe.encode(END_OF_TEXT) == [bpe.eos_id]
    assert bpe.decode([*bpe.encode("a"), bpe.eos_id]) == "a"
    assert bpe.decode([bpe.vocab_size + 5]) == ""


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_a_saved_tokenizer_is_loaded_again(tmp_path: Path, bpe: FileTokenizer, kind: str) -> None:
    tokenizer = bpe if kind == "bpe" else ByteTokenizer()
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is type(tokenizer)
    assert loaded.vocab_size == tokenizer.vocab_size
    assert loaded.eos_id == tokenizer.eos_id
    for text in HARD:
        assert loaded.encode(text) == tokenizer.encode(text)


def test_a_saved_one_that_is_gone(tmp_path: Path) -> None:
    assert told(lambda: load_tokenizer(tmp_path)).startswith(
        f"{tmp_path}/tokenizer.json must be readable, but is not: "
    )


def test_the_config_chooses_the_tokenizer(tmp_path: Path) -> None:
    word_level(tmp_path, {"[UNK]": 0, "a": 1}, "</s>")

    def unread() -> Iterator[str]:
        yield pytest.fail("only a trained tokenizer reads the text")

    assert isinstance(make_tokenizer(config(tokenizer__kind="bytes"), unread()), ByteTokenizer)
    pretrained = config(tokenizer__kind="pretrained", tokenizer__path=str(tmp_path))
    assert make_tokenizer(pretrained, unread()).encode("a") == [1]


@pytest.mark.parametrize(
    ("tokenizer_size", "model_size", "entries"),
    [(280, None, 280), (None, 290, 290), (270, 290, 270), (None, None, 320)],
)
def test_the_size_of_a_trained_one(
    tokenizer_size: int | None, model_size: int | None, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_module, "DEFAULT_VOCABULARY", 320)
    wanted = config(tokenizer__vocab_size=tokenizer_size, model__vocab_size=model_size)
    assert make_tokenizer(wanted, TEXTS).vocab_size == entries


def test_a_pretrained_one_is_a_file_or_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    word_level(tmp_path / "tok", {"[UNK]": 0, "a": 1, "b": 2}, "</s>")
    for path in (tmp_path / "tok", tmp_path / "tok" / "tokenizer.json", "~/tok"):
        tokenizer = pretrained(str(path))
        assert tokenizer.encode("b a x") == [2, 1, 0]
        assert tokenizer.eos_id == 3
        assert tokenizer.vocab_size == 4


@pytest.mark.parametrize("name", ["<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[EOS]", "<|eos|>"])
def test_every_common_name_of_the_end_is_known(tmp_path: Path, name: str) -> None:
    word_level(tmp_path, {"[UNK]": 0}, "<pad>", name)
    assert pretrained(str(tmp_path)).eos_id == 2


def test_ids_with_gaps_count_up_to_the_largest(tmp_path: Path) -> None:
    word_level(tmp_path, {"[UNK]": 0, "a": 1, "far": 70_000}, "</s>")
    tokenizer = pretrained(str(tmp_path))
    assert max(tokenizer.encode("far")) < tokenizer.vocab_size == 70_001


def test_settings_that_cut_and_fill_texts_are_left_out(tmp_path: Path) -> None:
    made = word_level(tmp_path, {"[UNK]": 0, "a": 1, "[PAD]": 2}, "</s>")
    made.enable_truncation(2)
    made.enable_padding(pad_id=2, pad_token="[PAD]", length=5)
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = pretrained(str(tmp_path))
    assert tokenizer.encode_batch(["a a a", "a"]) == [[1, 1, 1], [1]]
    assert tokenizer.encode("a a a") == [1, 1, 1]


def test_special_tokens_of_a_template_are_not_added(tmp_path: Path) -> None:
    made = word_level(tmp_path, {"[UNK]": 0, "a": 1}, "</s>")
    made.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    made.save(str(tmp_path / "tokenizer.json"))
    assert pretrained(str(tmp_path)).encode("a") == [1]


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", '{"version": "1.0", "model": {"type": "nonsense"}}', "\xff"])
def test_a_damaged_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="latin-1")
    message = told(lambda: pretrained(str(path)))
    assert message.startswith(f"tokenizer.path={path} must be a tokenizer.json, but cannot be read: ")


def test_a_truncated_file(tmp_path: Path, bpe: FileTokenizer) -> None:
    bpe.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-100])
    assert "cannot be read" in told(lambda: pretrained(str(tmp_path)))


def test_a_file_that_cannot_be_opened(tmp_path: Path, bpe: FileTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    bpe.save(tmp_path)

    def refuse(*_args: object, **_options: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    expected = f"tokenizer.path={tmp_path} must be readable, but is not: [Errno 13] Permission denied"
    assert told(lambda: pretrained(str(tmp_path))) == expected


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    write_text(tmp_path / "vocab.json", json.dumps({}))
    expected = f"tokenizer.path must be a tokenizer.json or a folder with one, but {tmp_path} holds none"
    assert told(lambda: pretrained(str(tmp_path))) == expected


def test_a_name_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    word_level(tmp_path, {"[UNK]": 0}, "</s>")
    calls = []

    def download(name: str, file: str) -> str:
        calls.append((name, file))
        return str(tmp_path / "tokenizer.json")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert pretrained("org/name", "</s>").vocab_size == 2
    assert calls == [("org/name", "tokenizer.json")]


def test_a_name_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> NoReturn:
        raise ConnectionError("\nno route to host\nsecond line")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    assert told(lambda: pretrained("org/name")) == (
        "tokenizer.path=org/name must be a local tokenizer or a Hugging Face model with a tokenizer.json, "
        "but: no route to host"
    )


@pytest.mark.parametrize(
    "path", ["/nosuch/x", "./x", "../x", "a/b/c", "x/", "tokenizer.json", "x/tokenizer.json", "a b"]
)
def test_a_path_that_does_not_exist_is_no_name(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        pretrained(path)
    assert str(caught.value) == (
        "tokenizer.path must be a tokenizer.json, a folder with one, or a Hugging Face name, but "
        f"'{path}' does not exist"
    )
    assert caught.value.hints == (() if path.startswith("/") else (f"paths are taken from {tmp_path}",))
    with pytest.raises(DataError, match=r"^tokenizer must be "):
        pretrained_file(path, "tokenizer")
