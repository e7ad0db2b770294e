"""Which token ends a document: said by the user, by the files beside a tokenizer, or by its name; never guessed."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from tests.unit.data.data_fixtures import config, stream, told, write_text
from tests.unit.data.test_data_tokenizer import pretrained, word_level
from trainer.config.schema import TridentConfig
from trainer.config.validate import validate
from trainer.data.prepare import prepare
from trainer.data.tokenizer import load_tokenizer, train_bpe
from trainer.errors import ConfigError, DataError

DEEPSEEK = "<\uff5cend\u2581of\u2581sentence\uff5c>"
NAMES = ("<END>", DEEPSEEK, "<pad>")
WORDS = {"[UNK]": 0, "a": 1, "2": 2}
"""The special tokens get the ids 3, 4, ..."""
FLAGS = {"__type": "AddedToken", "lstrip": False, "special": True}


def write(folder: Path, file: str, content: object) -> None:
    (folder / file).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def end(path: object, eos_token: str | None = None) -> int:
    return pretrained(str(path), eos_token).eos_id


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", {"eos_token": DEEPSEEK}),
        ("tokenizer_config.json", {"eos_token": {"content": DEEPSEEK, **FLAGS}}),
        ("special_tokens_map.json", {"eos_token": DEEPSEEK}),
        ("special_tokens_map.json", {"eos_token": {"content": DEEPSEEK}}),
        ("generation_config.json", {"eos_token_id": 4}),
        ("generation_config.json", {"eos_token_id": [4, 4]}),
    ],
)
def test_the_files_beside_it_say_it(tmp_path: Path, file: str, content: object) -> None:
    word_level(tmp_path, WORDS, *NAMES)
    write(tmp_path, file, content)
    assert end(tmp_path) == 4
    assert end(tmp_path / "tokenizer.json") == 4


def test_the_user_then_the_files_in_their_order(tmp_path: Path) -> None:
    word_level(tmp_path, WORDS, *NAMES, "</s>", "<|endoftext|>")
    write(tmp_path, "generation_config.json", {"eos_token_id": 3})
    assert end(tmp_path) == 3
    write(tmp_path, "special_tokens_map.json", {"eos_token": DEEPSEEK})
    assert end(tmp_path) == 4
    write(tmp_path, "tokenizer_config.json", {"eos_token": None})
    assert end(tmp_path) == 4, "null says nothing"
    write(tmp_path, "tokenizer_config.json", {"eos_token": "</s>"})
    assert end(tmp_path) == 6
    assert end(tmp_path, "<|endoftext|>") == 7
    write_text(tmp_path / "tokenizer_config.json", "broken")
    assert end(tmp_path, "<|endoftext|>") == 7, "nothing else is asked"


def test_a_special_token_goes_before_a_word_of_that_name(tmp_path: Path) -> None:
    word_level(tmp_path, {**WORDS, "</s>": 3}, "<|endoftext|>")
    assert end(tmp_path) == 4
    word_level(tmp_path, {**WORDS, "</s>": 3})
    assert end(tmp_path) == 3


def test_several_known_names_are_not_guessed_between(tmp_path: Path) -> None:
    word_level(tmp_path, WORDS, "<|endoftext|>", "</s>")
    with pytest.raises(DataError) as caught:
        end(tmp_path)
    assert str(caught.value) == (
        f"tokenizer.path={tmp_path} must say which token ends a document, but no tokenizer_config.json is beside it "
        "that does, and it has <|endoftext|> and </s>; set tokenizer.eos_token to the token that does"
    )
    assert caught.value.hints == ("for example 'tokenizer.eos_token=\"</s>\"'",)
    assert end(tmp_path, "</s>") == 4


def test_no_known_name(tmp_path: Path) -> None:
    word_level(tmp_path, WORDS, *NAMES)
    assert told(lambda: end(tmp_path)) == (
        f"tokenizer.path={tmp_path} must say which token ends a document, but no tokenizer_config.json is beside it "
        f"that does, and none of its special tokens (<END>, {DEEPSEEK}, <pad>) is known; set tokenizer.eos_token to "
        "the token that does"
    )
    word_level(tmp_path, WORDS)
    assert "none of its special tokens (none) is known" in told(lambda: end(tmp_path))


def test_a_token_that_there_is_not(tmp_path: Path) -> None:
    word_level(tmp_path, WORDS, *NAMES)
    assert told(lambda: end(tmp_path, "<END_>")) == (
        f"tokenizer.eos_token must be a token of tokenizer.path={tmp_path}, but '<END_>' is none; its special tokens "
        f"are <END>, {DEEPSEEK}, <pad>"
    )
    assert "must be a token of" in told(lambda: end(tmp_path, ""))
    # An id is no token, though digits may be words.
    for number, token in ((4, DEEPSEEK), (2, "2")):
        assert told(lambda number=number: end(tmp_path, str(number))) == (  # type: ignore[misc]
            f"tokenizer.eos_token must be the text of a token and not its id, but is {number}; set tokenizer.eos_token "
            f"to {token!r}"
        )
    assert "must be a token of" in told(lambda: end(tmp_path, "99999999999999999999"))


def test_a_file_that_names_a_token_that_there_is_not(tmp_path: Path) -> None:
    word_level(tmp_path, WORDS, *NAMES)
    write(tmp_path, "tokenizer_config.json", {"eos_token": "<|im_end|>"})
    assert told(lambda: end(tmp_path)).startswith(
        f"tokenizer.path={tmp_path} must have the token that ends a document, but has no '<|im_end|>', which "
        "tokenizer_config.json names; set tokenizer.eos_token to one that it has (its special tokens are <END>, "
    )
    write(tmp_path, "tokenizer_config.json", {})
    for number in (1000, 2**40):
        write(tmp_path, "generation_config.json", {"eos_token_id": number})
        assert f"but has no {number}, which generation_config.json names" in told(lambda: end(tmp_path))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer_config.json", "{", "tokenizer_config.json beside the tokenizer must be JSON"),
        ("tokenizer_config.json", "[" * 100_000, "must be JSON"),
        ("tokenizer_config.json", '{"eos_token": 7}', "must be the text of a token, but is 7"),
        ("special_tokens_map.json", '{"eos_token": {"lstrip": true}}', "must be the text of a token, but is {"),
        ("generation_config.json", '{"eos_token_id": "2"}', "must be a token's id, but is '2'"),
        ("generation_config.json", '{"eos_token_id": [true]}', "must be a token's id, but is [True]"),
        ("generation_config.json", '{"eos_token_id": [3, -1]}', "must be a token's id, but is [3, -1]"),
        ("generation_config.json", '{"eos_token_id": [3, 4, 3]}', "names 2 (ids 3, 4) and tokenizer_config.json none"),
    ],
)
def test_files_that_cannot_be_understood(tmp_path: Path, file: str, content: str, words: str) -> None:
    word_level(tmp_path, WORDS, *NAMES)
    write_text(tmp_path / file, content)
    message = told(lambda: end(tmp_path))
    assert words in message
    assert "set tokenizer.eos_token" in message


def test_files_that_say_nothing(tmp_path: Path) -> None:
    word_level(tmp_path, WORDS, "</s>")
    for file, content in {"tokenizer_config.json": "[]", "generation_config.json": '{"eos_token_id": []}'}.items():
        write_text(tmp_path / file, content)
    assert end(tmp_path) == 3


def test_what_was_saved_says_it_too(tmp_path: Path) -> None:
    word_level(tmp_path / "tok", WORDS, *NAMES, "</s>", "<|endoftext|>")
    (tmp_path / "saved").mkdir()
    pretrained(str(tmp_path / "tok"), DEEPSEEK).save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").eos_id == 4
    assert end(tmp_path / "saved") == 4


def test_runs_of_earlier_versions_are_read_as_they_were_made(tmp_path: Path) -> None:
    word_level(tmp_path, WORDS, "</s>", "<|endoftext|>")
    assert load_tokenizer(tmp_path).eos_id == 4, "the first of the known names, whatever stands beside"
    word_level(tmp_path, WORDS, *NAMES)
    assert "must say which token ends a document" in told(lambda: load_tokenizer(tmp_path))


def test_a_trained_one_ends_with_its_own(tmp_path: Path) -> None:
    bpe = train_bpe(["</s></s></s><eos><eos><eos>"] * 20, 400)
    assert bpe.decode([bpe.eos_id]) == ""
    bpe.save(tmp_path)
    assert load_tokenizer(tmp_path).eos_id == bpe.eos_id == end(tmp_path)


def wanted(folder: Path, **values: object) -> TridentConfig:
    if not (folder / "a.txt").exists():
        write_text(folder / "a.txt", "a a\n")
    keys: dict[str, object] = {
        "data__source": "files",
        "data__files": [str(folder / "a.txt")],
        "data__cache_dir": str(folder / "cache"),
        "data__validation_fraction": 0,
        "tokenizer__kind": "pretrained",
        "tokenizer__path": str(folder),
    }
    return config(**(keys | values))


def test_the_cache_notices_another_end(tmp_path: Path) -> None:
    word_level(tmp_path, WORDS, "</s>", "<END>")
    ends = []
    for content in (None, {"eos_token": "<END>"}, {"eos_token": "</s>", "chat_template": "x"}):
        if content is not None:
            write(tmp_path, "tokenizer_config.json", content)
        ends.append(stream(prepare(wanted(tmp_path)))[-1])
    ends.append(stream(prepare(wanted(tmp_path, tokenizer__eos_token="<END>")))[-1])
    assert ends == [3, 4, 3, 4]


def test_the_cache_is_used_while_the_end_stays(tmp_path: Path) -> None:
    word_level(tmp_path, WORDS, "</s>", "<END>")
    write(tmp_path, "tokenizer_config.json", {"eos_token": "<END>"})
    first = prepare(wanted(tmp_path))
    write(tmp_path, "tokenizer_config.json", {"eos_token": "<END>", "model_max_length": 9})

    def nothing(text: str) -> None:
        pytest.fail(text)

    assert prepare(wanted(tmp_path), nothing) == first


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_it_has_no_effect_on_others(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"tokenizer.eos_token has no effect with tokenizer.kind={kind}"):
        validate(config(tokenizer__kind=kind, tokenizer__eos_token="</s>"))


class Hub:
    """Stands for Hugging Face: files of a folder, or an error of the library's."""

    def __init__(self, folder: Path, missing: type[Exception]) -> None:
        self.folder, self.missing = folder, missing
        self.asked: list[str] = []

    def download(self, _name: str, file: str) -> str:
        self.asked.append(file)
        if not (self.folder / file).exists():
            # Without what they are made with: a response.
            raise self.missing.__new__(self.missing, f"no {file}")
        return str(self.folder / file)


@pytest.mark.parametrize(("missing", "known"), [(EntryNotFoundError, False), (LocalEntryNotFoundError, True)])
def test_a_model_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: type[Exception], known: bool
) -> None:
    word_level(tmp_path, WORDS, *NAMES)
    write(tmp_path, "generation_config.json", {"eos_token_id": 4})
    hub = Hub(tmp_path, missing)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    cached = huggingface_hub._CACHED_NO_EXIST if known else None
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: cached)
    assert end("org/name") == 4
    others = ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"]
    assert hub.asked == ["tokenizer.json", *others]


def test_without_a_network_it_is_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    word_level(tmp_path, WORDS, "</s>")
    hub = Hub(tmp_path, LocalEntryNotFoundError)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: None)
    message = told(lambda: end("org/name"))
    assert message.startswith("tokenizer_config.json of tokenizer.path=org/name must be within reach, since it may say")
    assert end("org/name", "</s>") == 3
