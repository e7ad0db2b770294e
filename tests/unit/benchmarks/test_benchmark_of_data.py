from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import real_text
from benchmarks.__main__ import settings_of
from benchmarks.commands import cores, own_bytes, run
from benchmarks.contenders.tokenising import (
    PIECES,
    PROGRAMS,
    SPARSE,
    encode_batch,
    open_epoch,
    read_at_random,
    read_places,
    write_sparse,
)
from benchmarks.settings import Settings, UsageError
from trainer.data.best_fit import packed_pieces
from trainer.data.megatron_pair import PairWriter
from trainer.data.shard_set import ShardSet
from trainer.data.token_manifest import Counts, Manifest, Shard, write_manifest
from trainer.data.tokenizer import load_tokenizer, train_bpe

suite: Any = importlib.import_module("benchmarks.suites.data")
"""The module; the package's attribute of this name is the suite."""
TEXTS = [f"Text number {number} é, which is not long.\n" for number in range(50)]


def test_the_text_is_real_and_the_same_each_time() -> None:
    texts = real_text.collected(300_000)
    assert texts == real_text.collected(300_000)
    assert 300_000 <= sum(len(text.encode()) for text in texts) < 300_000 + real_text._LARGEST
    assert any("import " in text for text in texts)


def test_text_is_repeated_in_another_order_to_its_size(tmp_path: Path) -> None:
    size = sum(len(text.encode()) for text in TEXTS)
    found = list(real_text.repeated(TEXTS, 2 * size))
    assert sorted(found[:50]) == sorted(found[50:]) == sorted(TEXTS)
    assert found[:50] != found[50:]
    held = real_text.write_lines(TEXTS, tmp_path / "x.jsonl", 5000)
    lines = [json.loads(line)["text"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert 5000 <= held == sum(len(text.encode()) for text in lines) < 5100
    assert real_text.write_document(TEXTS, tmp_path / "x.txt", 5000) == (tmp_path / "x.txt").stat().st_size == held


def test_small_files_are_a_thousand_to_a_folder_and_all_different(tmp_path: Path) -> None:
    size = real_text.write_files(TEXTS, tmp_path, 1003)
    files = sorted(tmp_path.rglob("*.txt"))
    assert [len(list(folder.iterdir())) for folder in sorted(tmp_path.iterdir())] == [1000, 3]
    assert len({file.read_bytes() for file in files}) == 1003
    assert size == sum(file.stat().st_size for file in files)


def test_a_command_is_measured_with_the_processes_that_it_starts() -> None:
    held = 64 << 20
    inner = f"import time; held = bytearray({held}); held[::4096] = b'x' * len(held[::4096]); time.sleep(0.6)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}]); print('done')"
    found = run([sys.executable, "-c", outer], looks_at_memory=True)
    assert found.output.splitlines()[-1] == "done"
    assert found.seconds > 0.6
    # Two interpreters take some MiB each.
    assert held <= found.peak_bytes < held + (64 << 20)
    assert run([sys.executable, "-c", ""]).peak_bytes == 0
    assert own_bytes(1 << 22) == 0
    assert cores() >= 1


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"must end well, but its exit code is 3: this is why"):
        run([sys.executable, "-c", "print('this is why'); raise SystemExit(3)"])


@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_tokenizer_alone_makes_the_tokens_that_trident_makes(tmp_path: Path, processes: str) -> None:
    (tmp_path / "tokenizer").mkdir()
    train_bpe(TEXTS, 300).save(tmp_path / "tokenizer")
    real_text.write_lines(TEXTS, tmp_path / "x.jsonl", 5000)
    texts = [json.loads(line)["text"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    expected = sum(len(ids) + 1 for ids in load_tokenizer(tmp_path / "tokenizer").encode_batch(texts))
    found = encode_batch(str(tmp_path / "x.jsonl"), str(tmp_path / "tokenizer"), processes)
    assert found["tokens"] == expected
    assert found["seconds"] > 0


def test_reading_at_random_reads_the_training_part(tmp_path: Path) -> None:
    with PairWriter(tmp_path / "train-00000", "uint16") as writer:
        writer.append(np.arange(1000))
    manifest = Manifest("x", None, 1000, None, {"train": (writer.shard(),)}, Counts(1), (), {})
    write_manifest(tmp_path, manifest)
    assert read_at_random(str(tmp_path), "16", "50")["samples"] == 50
    assert read_at_random(str(tmp_path), "16", "50")["of"] == 62


@pytest.mark.parametrize("packing", ["cut", "best_fit"])
def test_an_epoch_of_sparse_files_opens_without_memory(tmp_path: Path, packing: str) -> None:
    write_sparse(tmp_path, 16, 10**7)
    found = open_epoch(str(tmp_path), "16", str(10**7), packing)
    assert (found["samples"], found["packing"]) == (10**7, packing)
    assert found["open_seconds"] < 2
    assert found["bytes"] < 100 << 20


def test_samples_of_the_sparse_index_are_full_of_documents(tmp_path: Path) -> None:
    write_sparse(tmp_path, 16, 10**6)
    shards = ShardSet(tmp_path, [Shard(str(tmp_path / SPARSE), "uint16", 0, 16 * 10**6 + 1, 1, 0, None, "", "none")])
    pieces = packed_pieces(tmp_path, "train", shards, 16)
    for place in read_places(10**6):
        found = pieces.of(place)
        assert len(found) == PIECES
        assert found[0][0] == 16 * place
        assert sum(count for _, count, _ in found) == 16


def test_a_part_that_does_not_exist_and_sizes() -> None:
    with pytest.raises(UsageError, match="--only: there is no part 'speeds'; choose from speed; memory; files; access"):
        suite.data(Settings(only=("speeds",)))
    assert settings_of(["data", "--megabytes", "3"])[1].megabytes == 3
    with pytest.raises(UsageError, match="--megabytes belongs to the suite data, not to single"):
        settings_of(["single", "--megabytes", "3"])


def test_parts_are_measured_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def turn(place: Any, way: str, corpus: Path) -> float:
        calls.append(way)
        return 2.0 if way == suite.TRIDENT else 1.0 if way in suite.ENCODERS else 8.0

    monkeypatch.setattr(suite, "_turn", turn)
    monkeypatch.setattr(suite, "_EPOCH_SAMPLES", 10**6)
    path = suite.data(Settings(only=("speed", "epoch"), rounds=2, megabytes=1, results=tmp_path))
    body = json.loads(path.read_text())
    order = [suite.TRIDENT, *suite.ENCODERS, *suite.SCRIPTS]
    assert calls == [*order, *reversed(order)]
    ways = body["speed"]["ways"]
    assert [ways[way]["speed_of_trident"]["median"] for way in order] == [1, 0.5, 0.5, 4, 4, 4]
    assert [one["samples"] for one in body["epoch"]] == [10**6, 10**6]
    assert "memory" not in body
    told = path.with_suffix(".md").read_text()
    assert "| datasets.map, plain " in told
    assert "an epoch of 1,000,000 samples, packing best_fit: open in" in told


@pytest.mark.slow
def test_the_whole_suite_on_a_megabyte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "_DEBUG_STEPS", 6)
    path = suite.data(Settings(rounds=1, megabytes=1, results=tmp_path))
    body = json.loads(path.read_text())
    assert [row["what"] for row in body["memory"]["rows"]] == ["lines", "lines", "lines", "one document"]
    assert all(row["peak_bytes"] > 0 for row in body["memory"]["rows"])
    assert body["files"]["files"] == 1000
    assert body["access"]["times"] > 1
    assert body["audit"]["seconds"] > 0
    assert set(PROGRAMS) == {"encode_batch", "map_script", "read_at_random", "open_epoch"}
