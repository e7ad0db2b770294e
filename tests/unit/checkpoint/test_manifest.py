from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainer.checkpoint.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    FileFacts,
    Manifest,
    _checksum,
    _dump,
    check_content,
    check_sizes,
    describe_layout,
    file_facts,
    read_manifest,
)
from trainer.config.plan import make_plan
from trainer.config.schema import LayoutConfig, ModelConfig, OffloadKind, TridentConfig, ZeroConfig
from trainer.errors import CheckpointError
from trainer.loop.state import TrainState

LAYOUT = LayoutConfig(pipeline_parallel_size=2, tensor_parallel_size=2, data_parallel_size=2, sequence_parallel=True)
CONFIG = TridentConfig(ModelConfig(num_layers=8, seq_length=16), layout=LAYOUT, zero=ZeroConfig(1, OffloadKind.cpu))


def manifest_of(files: dict[str, FileFacts] | None = None) -> Manifest:
    return Manifest(
        step=7,
        vocab_size=100,
        train_state=TrainState(step=7, tokens_seen=70, sample_ledger="abc", sample_length=8).to_dict(),
        scalars={"optimizer_step": 6.0, "cur_scale": 0.1 + 0.2},
        probe_loss=4.5,
        layout=describe_layout(make_plan(CONFIG, 100)),
        versions={"trident-trainer": "1.0", "python": "3.12"},
        files=files or {},
    )


def written(folder: Path, text: str | bytes | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = manifest_of().to_json() if text is None else text
    (folder / MANIFEST).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def facts_of(folder: Path) -> dict[str, FileFacts]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_facts(path) for path in files}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.bin").write_bytes(b"12345")
    (tmp_path / "ü.bin").write_bytes(b"")
    manifest = manifest_of(facts_of(tmp_path))
    assert read_manifest(written(tmp_path, manifest.to_json())) == manifest
    assert {name: facts.size_bytes for name, facts in manifest.files.items()} == {"a/x.bin": 5, "ü.bin": 0}
    check_sizes(tmp_path, manifest)
    check_content(tmp_path, manifest)


def test_file_facts_are_those_of_all_blocks(tmp_path: Path) -> None:
    content = bytes(range(256)) * 40_000
    (tmp_path / "x").write_bytes(content)
    assert len(content) > 2 * (1 << 22)
    assert file_facts(tmp_path / "x") == FileFacts(len(content), hashlib.blake2b(content, digest_size=16).hexdigest())


def test_the_layout_of_a_plan() -> None:
    assert describe_layout(make_plan(CONFIG, 100)) == {
        "pipeline_parallel_size": 2,
        "tensor_parallel_size": 2,
        "data_parallel_size": 2,
        "sequence_parallel": True,
        "pipeline_schedule": "1f1b",
        "zero_stage": 1,
        "offload": "cpu",
        "dtype": "fp32",
        "global_batch_size": CONFIG.batch.global_batch_size,
        "seq_length": CONFIG.model.seq_length,
    }


def test_the_stage_in_a_manifest_is_the_one_that_ran() -> None:
    alone = make_plan(replace(CONFIG, layout=LayoutConfig(), zero=ZeroConfig(stage=1)), 100)
    assert alone.config.zero.stage == 1
    assert describe_layout(alone)["zero_stage"] == 0


def sealed(edit: Callable[[dict[str, Any]], object]) -> str:
    """Return a manifest that says something else, with the checksum that fits."""
    raw = json.loads(manifest_of().to_json())
    edit(raw)
    raw.pop("checksum", None)
    return _dump({**raw, "checksum": _checksum(raw)})


def drop(key: str) -> str:
    return sealed(lambda raw: raw.pop(key))


def put(value: object, *path: str) -> str:
    def edit(raw: dict[str, Any]) -> None:
        for key in path[:-1]:
            raw = raw[key]
        raw[path[-1]] = value

    return sealed(edit)


TOP = ("format_version", "step", "vocab_size", "train_state", "scalars", "layout", "versions", "files")


@pytest.mark.parametrize("key", TOP)
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(CheckpointError, match=rf"manifest\.json must be .* lacks '{key}'"):
        read_manifest(written(tmp_path, drop(key)))


def test_a_missing_checksum_is_named(tmp_path: Path) -> None:
    raw = json.loads(manifest_of().to_json())
    del raw["checksum"]
    with pytest.raises(CheckpointError, match="lacks 'checksum'"):
        read_manifest(written(tmp_path, _dump(raw)))


GOOD = FileFacts(5, "ab" * 16)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (put("7", "step"), "step must be a whole number of at least 0, but is '7'"),
        (put(7.5, "step"), "step must be a whole number"),
        (put(True, "step"), "step must be a whole number"),
        (put(-1, "step"), "step must be a whole number"),
        (put(None, "vocab_size"), "vocab_size must be a whole number"),
        (put([], "layout"), "layout must be a JSON object"),
        (put([], "scalars"), "scalars must be a JSON object"),
        (put("1", "scalars", "cur_scale"), "cur_scale must be a number, but is '1'"),
        (put(True, "scalars", "cur_scale"), "cur_scale must be a number, but is True"),
        (put(3, "versions"), "versions must be a JSON object"),
        (put([["step", 7]], "train_state"), "train_state must be a JSON object"),
        (put({"sample_length": 8, "step": 7}, "train_state"), "position must be a whole number"),
        (put("7", "train_state", "step"), "step must be a whole number"),
        (put(["a"], "files"), "files must be a JSON object"),
        (put({"a": 5}, "files"), "a must be a JSON object"),
        (put({"a": {"size_bytes": "5", "blake2b": "x"}}, "files"), "size_bytes must be a whole number"),
        (put({"a": {"size_bytes": -5, "blake2b": "x"}}, "files"), "size_bytes must be a whole number"),
        (put({"a": {"size_bytes": 5}}, "files"), "lacks 'blake2b'"),
        (put({"/etc/passwd": vars(GOOD)}, "files"), "must be below the checkpoint, but one is '/etc/passwd'"),
        (put({"a/../../b": vars(GOOD)}, "files"), "must be below the checkpoint"),
        (put({"": vars(GOOD)}, "files"), "must be below the checkpoint"),
        (put(1, "format_version"), f"format_version must be {FORMAT_VERSION}, but is 1"),
        (put("2", "format_version"), f"format_version must be {FORMAT_VERSION}, but is '2'"),
        (manifest_of().to_json().replace('"step": 7', '"step": 8', 1), "it was changed or damaged"),
        (json.dumps(json.loads(manifest_of().to_json())), "its white space has changed"),
        ("[1, 2]", "it must be a JSON object, but is a list"),
        ('"text"', "it must be a JSON object, but is a str"),
        ("null", "it must be a JSON object, but is a NoneType"),
        ("3", "it must be a JSON object, but is a int"),
        ("", "cannot be read"),
        (manifest_of().to_json()[:-20], "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        ("[" * 200_000, "cannot be read"),
        # What a file of pickled objects begins with.
        (b"\x80\x04\x95\x1e\x00\x00\x00", "cannot be read"),
    ],
)
def test_a_malformed_manifest_is_an_error_that_says_what_is_wrong(
    tmp_path: Path, text: str | bytes, words: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_manifest(written(tmp_path, text))
    assert words in str(caught.value)
    assert str(tmp_path / MANIFEST) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_what_the_edits_start_from_is_good(tmp_path: Path) -> None:
    assert read_manifest(written(tmp_path, sealed(lambda raw: None))) == manifest_of()


def test_every_change_of_a_byte_is_noticed(tmp_path: Path) -> None:
    text = manifest_of({"tensors/rank_00000.safetensors": GOOD}).to_json().encode()
    path = written(tmp_path, text) / MANIFEST
    unnoticed = []
    for at, byte in enumerate(text):
        # A bit, the case of a letter, another digit, and white space of every kind.
        for other in {byte ^ 1, byte ^ 0x20, *b" \r"} - {byte}:
            changed = text[:at] + bytes([other]) + text[at + 1 :]
            path.write_bytes(changed)
            with suppress(CheckpointError):
                read_manifest(tmp_path)
                unnoticed.append(changed[max(0, at - 10) : at + 10])
    assert unnoticed == []
    path.write_bytes(text)
    assert read_manifest(tmp_path).files


@pytest.mark.parametrize("change", [lambda t: t + b"\n", lambda t: t[:-1], lambda t: b" " + t, lambda t: t + b"\0"])
def test_a_byte_more_or_less_is_noticed(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(CheckpointError):
        read_manifest(written(tmp_path, change(manifest_of().to_json().encode())))


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must be a checkpoint, but holds no manifest\.json"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_manifest(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_manifest(tmp_path / "file")


def test_a_missing_file_and_a_file_of_another_size_are_named(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"123")
    good = file_facts(tmp_path / "good")
    for check in (check_sizes, check_content):
        with pytest.raises(CheckpointError, match="sub/gone must exist, but is missing"):
            check(tmp_path, manifest_of({"good": good, "sub/gone": GOOD}))
        for size in (2, 4):
            with pytest.raises(CheckpointError, match=f"good must have {size} bytes, but has 3"):
                check(tmp_path, manifest_of({"good": replace(good, size_bytes=size)}))
    (tmp_path / "sub" / "gone").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="sub/gone must exist, but is missing"):
        check_sizes(tmp_path, manifest_of({"sub/gone": GOOD}))


def test_changed_content_of_the_same_size_is_named_with_both_hashes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"123")
    manifest = manifest_of(facts_of(tmp_path))
    (tmp_path / "x").write_bytes(b"124")
    check_sizes(tmp_path, manifest)
    with pytest.raises(CheckpointError, match=r"x must be as it was saved, but its content has changed") as caught:
        check_content(tmp_path, manifest)
    assert manifest.files["x"].blake2b in str(caught.value)
    assert file_facts(tmp_path / "x").blake2b in str(caught.value)


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_ranks_share_the_reading_and_together_read_all(
    tmp_path: Path, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(7):
        (tmp_path / f"f{index}").write_bytes(b"x" * index)
    manifest = manifest_of(facts_of(tmp_path))
    read: list[list[str]] = []

    def spy(path: Path) -> FileFacts:
        read[-1].append(path.name)
        return file_facts(path)

    monkeypatch.setattr("trainer.checkpoint.manifest.file_facts", spy)
    for part in range(parts):
        read.append([])
        check_content(tmp_path, manifest, part, parts)
    assert sorted(name for names in read for name in names) == sorted(manifest.files)
    assert max(map(len, read)) - min(map(len, read)) <= 1
    (tmp_path / "f5").write_bytes(b"y" * 5)
    noticed = 0
    for part in range(parts):
        try:
            check_content(tmp_path, manifest, part, parts)
        except CheckpointError as error:
            noticed += "f5 must be as it was saved" in str(error)
    assert noticed == 1


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"123")
    manifest = manifest_of(facts_of(tmp_path))

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("trainer.checkpoint.manifest.file_facts", fail)
    with pytest.raises(CheckpointError, match=r"x must be readable, but: .*Input/output error"):
        check_content(tmp_path, manifest)
