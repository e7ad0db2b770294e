"""The one tokenizer that a blend trains: on which texts, once, and by a name that says all that decides it."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.held_out import is_held_out
from tests.unit.data.data_fixtures import config, stream, told, write_text
from trainer.config.schema import TridentConfig
from trainer.data.prepare import look_up, prepare
from trainer.data.tokenizer import load_tokenizer, train_bpe
from trainer.data.trained_tokenizer import in_turn
from trainer.errors import StorageError

WEB = [f"The quick brown fox number {number} jumps over lazy dogs. " for number in range(60)]
CODE = [f"def read_{number}(self): return self.values[{number}]\n" for number in range(40)]


def lines(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_text(tmp_path / "web.jsonl", lines(WEB))
    write_text(tmp_path / "code.jsonl", lines(CODE))
    return tmp_path


def wanted(corpus: Path, **values: Any) -> TridentConfig:
    keys: dict[str, Any] = {
        "data__cache_dir": str(corpus / "cache"),
        "data__blend": {
            name: {"weight": 1, "source": "files", "files": [str(corpus / f"{name}.jsonl")]} for name in ("web", "code")
        },
        "data__validation_fraction": 0.2,
        "tokenizer__vocab_size": 300,
    }
    return config(**(keys | values))


def vocabulary(folder: Path | None) -> str:
    assert folder is not None
    return (folder / "tokenizer.json").read_text()


def test_it_is_trained_on_what_all_sources_train_on_and_encodes_each_of_them(corpus: Path) -> None:
    found = prepare(wanted(corpus))
    kept = {
        name: iter([text for text in texts if not is_held_out(text, 0.2)])
        for name, texts in (("code", CODE), ("web", WEB))
    }
    expected = train_bpe(in_turn(kept), 300)
    assert json.loads(vocabulary(found.tokenizer_folder)) == json.loads(expected._tokenizer.to_str())
    assert found.vocab_size == expected.vocab_size
    for source, texts in zip(found.sources, (WEB, CODE), strict=True):
        documents = [[*expected.encode(text), expected.eos_id] for text in texts if not is_held_out(text, 0.2)]
        assert stream(source.prepared).tolist() == [id_ for ids in documents for id_ in ids]
        assert vocabulary(source.prepared.tokenizer_folder) == vocabulary(found.tokenizer_folder)


def test_sources_give_equal_shares_in_turn() -> None:
    found = in_turn({"a": iter(["x" * 20_000, "last"]), "b": iter(["y" * 9000] * 4), "c": iter([])})
    parts = [(text[:1], len(text)) for text in found]
    assert parts[:4] == [("x", 8192), ("y", 8192), ("x", 8192), ("y", 808)]
    assert sum(length for _, length in parts) == 20_004 + 36_000
    endless = in_turn({name: repeat(name * 100) for name in "abc"})
    assert [text[0] for text in islice(endless, 6)] == list("abcabc")


def test_weights_order_and_bad_records_do_not_decide_it_and_texts_and_size_do(corpus: Path) -> None:
    first = prepare(wanted(corpus))
    blend = {
        name: {"weight": 5, "source": "files", "files": [str(corpus / f"{name}.jsonl")]} for name in ("code", "web")
    }
    same = prepare(wanted(corpus, data__blend=blend))
    assert {one.name: one.prepared.fingerprint for one in same.sources} == {
        one.name: one.prepared.fingerprint for one in first.sources
    }
    prepare(wanted(corpus, data__on_bad_record="skip"))
    assert len(list((corpus / "cache").glob("tokenizer-*/"))) == 1
    larger = prepare(wanted(corpus, tokenizer__vocab_size=310))
    write_text(corpus / "code.jsonl", lines([*CODE, "More of it.\n"]))
    other = prepare(wanted(corpus))
    assert len(list((corpus / "cache").glob("tokenizer-*/"))) == 3
    # Its name is a part of that of each source, also of the one whose texts are the same.
    assert len({one.sources[0].prepared.fingerprint for one in (first, larger, other)}) == 3


def test_it_is_looked_up_and_survives_a_move_of_the_cache_and_damage(corpus: Path) -> None:
    assert look_up(wanted(corpus))[1] is None
    first = prepare(wanted(corpus))
    (corpus / "cache").rename(corpus / "moved")
    moved = wanted(corpus, data__cache_dir=str(corpus / "moved"))
    found = look_up(moved)[1]
    assert found is not None
    assert found.fingerprint == first.fingerprint
    (own,) = (corpus / "moved").glob("tokenizer-*/")
    (own / "tokenizer.json").write_text("{")
    assert look_up(moved)[1] is None
    assert prepare(moved).fingerprint == first.fingerprint
    assert load_tokenizer(own).vocab_size == first.vocab_size


def test_processes_that_ask_at_once_get_the_same(corpus: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: prepare(wanted(corpus)).content, range(3)))
    assert len(set(found)) == 1
    assert not [path for path in (corpus / "cache").iterdir() if path.name.endswith(".partial")]


def test_a_source_with_validation_files_gives_its_training_texts(corpus: Path) -> None:
    write_text(corpus / "held.jsonl", lines(["something else entirely"] * 30))
    blend = {
        "web": {"weight": 1, "source": "files", "files": [str(corpus / "web.jsonl")]},
        "code": {
            "weight": 1,
            "source": "files",
            "files": [str(corpus / "code.jsonl")],
            "validation_files": [str(corpus / "held.jsonl")],
            "validation_fraction": 0.0,
        },
    }
    found = prepare(wanted(corpus, data__blend=blend))
    assert "entirely" not in vocabulary(found.tokenizer_folder)
    assert found.sources[1].prepared.validation_tokens > 0


def test_what_cannot_be_trained_on_names_its_source(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (corpus / "code.jsonl").open("a") as file:
        file.write("{\n")
    assert told(lambda: prepare(wanted(corpus))).startswith("data.blend.code: ")
    (corpus / "code.jsonl").unlink()
    assert told(lambda: look_up(wanted(corpus))).startswith("data.blend.code: ")
    shutil.copy(corpus / "web.jsonl", corpus / "code.jsonl")
    small = wanted(corpus, tokenizer__vocab_size=None, model__vocab_size=9000)
    assert "the text is enough for only" in told(lambda: prepare(small))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.data.shared_cache.partial_folder", full)
    with pytest.raises(StorageError, match=r"data\.cache_dir must be on a disk that takes the tokens"):
        prepare(wanted(corpus))


def test_files_that_change_while_it_is_trained_are_refused(corpus: Path) -> None:
    def change(text: str) -> None:
        if text.startswith("training one tokenizer"):
            write_text(corpus / "web.jsonl", lines([*WEB, "appended"]))

    assert "must not change while a tokenizer is trained on them" in told(lambda: prepare(wanted(corpus), change))
    assert not list((corpus / "cache").glob("tokenizer-*/"))
