from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.data.token_files import Packed
from trainer.data.token_manifest import MANIFEST, Counts, Manifest, Shard, read_manifest, write_manifest


def shard(name: str, digest: str, tokens: int = 8, marks: str | None = None) -> Shard:
    return Shard(f"{name}.bin", "uint16", 0, tokens, 2, 7, 30, digest, "idx", marks)


def manifest(*train: Shard, packed: Packed | None = None) -> Manifest:
    parts = {"train": train, "validation": (shard("validation_00000", "v", 4),), "test": ()}
    sizes = {one.name: 2 * one.tokens for shards in parts.values() for one in shards}
    return Manifest("web", "t", 100, 99, parts, Counts(9, 1, 2, 3), ("a", "b"), sizes, packed)


def written(folder: Path, value: Manifest) -> Manifest:
    for name, size in value.sizes.items():
        (folder / name).write_bytes(bytes(size))
    write_manifest(folder, value)
    return value


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    value = written(tmp_path, manifest(shard("train_00000", "a"), shard("train_00001", "b")))
    assert read_manifest(tmp_path) == value
    assert value.tokens("train") == 16
    assert value.tokens("validation") == 4
    assert value.tokens("test") == value.tokens("nothing") == 0


def test_facts_of_packed_examples_are_read_back(tmp_path: Path) -> None:
    packed = Packed(16, 3, 40, 20, 1, 0, 0)
    value = written(tmp_path, manifest(shard("train_00000", "a", marks="m"), packed=packed))
    assert read_manifest(tmp_path) == value
    empty = hashlib.blake2b(digest_size=16).hexdigest()
    assert value.content() == "a-m-v-"
    assert replace(value, parts={}).content() == "-".join([empty] * 4)


def test_the_content_of_one_shard_is_its_own_hash_and_of_several_a_hash_of_all() -> None:
    assert manifest(shard("x", "a")).content() == "a-v"
    several = manifest(shard("x", "a"), shard("y", "b")).content()
    assert several == hashlib.blake2b(b"a-b", digest_size=16).hexdigest() + "-v"
    assert several != manifest(shard("x", "b"), shard("y", "a")).content()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: "[]",
        lambda text: "{}",
        lambda text: "null",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"format_version": 3', '"format_version": 4'),
        lambda text: text.replace('"train_00000.bin": 16', '"train_00000.bin": 17'),
        lambda text: text.replace('"vocab_size"', '"vocabulary"'),
        lambda text: json.dumps({**json.loads(text), "parts": [1]}),
        lambda text: json.dumps({**json.loads(text), "counts": 1}),
    ],
)
def test_a_folder_that_is_not_whole_has_no_description(tmp_path: Path, damage: object) -> None:
    written(tmp_path, manifest(shard("train_00000", "a")))
    path = tmp_path / MANIFEST
    text = path.read_text()
    changed = damage(text)  # type: ignore[operator]
    assert changed != text
    path.write_text(changed)
    assert read_manifest(tmp_path) is None


def test_a_missing_or_shorter_file_makes_a_folder_not_whole(tmp_path: Path) -> None:
    written(tmp_path, manifest(shard("train_00000", "a")))
    (tmp_path / "train_00000.bin").write_bytes(b"x")
    assert read_manifest(tmp_path) is None
    (tmp_path / "train_00000.bin").unlink()
    assert read_manifest(tmp_path) is None


def test_a_shard_with_other_numbers_than_its_file_makes_a_folder_not_whole(tmp_path: Path) -> None:
    value = written(tmp_path, manifest(shard("train_00000", "a")))
    for other in (replace(shard("train_00000", "a"), dtype="int32"), shard("train_00000", "a", tokens=7)):
        write_manifest(tmp_path, replace(value, parts={"train": (other,)}))
        assert read_manifest(tmp_path) is None


def test_a_shard_that_lies_elsewhere_may_be_a_part_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.bin"
    file.write_bytes(bytes(20))
    there = replace(shard("x", "a"), name=str(file), first_byte=4, beside="train-00000")
    value = written(tmp_path, replace(manifest(there), sizes={}, parts={"train": (there,)}))
    assert read_manifest(tmp_path) == value
    file.write_bytes(bytes(30))
    assert read_manifest(tmp_path) == value
    file.write_bytes(bytes(19))
    assert read_manifest(tmp_path) is None


def test_where_documents_end_is_known_if_every_shard_says_it() -> None:
    one, two = replace(shard("x", "a"), ends_blake2b="1"), replace(shard("y", "b"), ends_blake2b="2")
    other = replace(shard("v", "c"), ends_blake2b="3")
    parts = {"train": (one,), "validation": (other,)}
    assert replace(manifest(one), parts=parts).ends() == "1-3"
    several = hashlib.blake2b(b"1-2", digest_size=16).hexdigest()
    assert replace(manifest(one), parts={**parts, "train": (one, two)}).ends() == f"{several}-3"
    assert replace(manifest(one), parts={**parts, "train": (one, shard("y", "b"))}).ends() is None
