"""Fragments: any cut comes back bit for bit, and whatever is not whole is told."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file

from tests.helpers.tiny_models import TINY, TINY_LLAMA
from tests.unit.checkpoint.checkpoint_fixtures import cut
from tests.unit.checkpoint.fragment_fixtures import FULL, SPECS, name_of, opened, write, write_cut, write_model
from trainer.checkpoint.container import read_values
from trainer.checkpoint.fragments import TensorFolder, write_fragments
from trainer.config.schema import ModelConfig
from trainer.engine.face import Fragment
from trainer.errors import CheckpointError, StorageError
from trainer.files import storage_faults
from trainer.tensor_parallel.shard import ShardSpec, shard


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize(
    "model",
    [TINY, TINY_LLAMA, replace(TINY_LLAMA, num_attention_heads=8, head_dim=2)],
    ids=["gpt2", "llama", "grouped"],
)
def test_weights_come_back_bit_for_bit_from_any_tensor_parallel_size(
    tmp_path: Path, model: ModelConfig, tp: int
) -> None:
    # 29 ids: padded to 32, or more for tp=4 with a multiple of 16.
    expected = write_model(tmp_path, replace(model, vocab_pad_multiple=16), 29, tp)
    found = opened(tmp_path)
    assert found.names() == sorted(expected)
    for name, tensor in expected.items():
        assert torch.equal(found.read("weight", name), tensor), name
        assert found.shape(name) == tuple(tensor.shape)
    assert found.shape("embedding.weight")[0] == 29


@settings(max_examples=40, deadline=None)
@given(
    tp=st.sampled_from([1, 2, 4]),
    cuts=st.lists(st.lists(st.integers(1, 23), max_size=5, unique=True), min_size=4, max_size=4),
    ranks=st.lists(st.integers(0, 6), min_size=40, max_size=40),
)
def test_any_cut_over_any_ranks_comes_back(
    tmp_path_factory: pytest.TempPathFactory, tp: int, cuts: list[list[int]], ranks: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    spec = ShardSpec("x", (8, 3), 0, (4, 4))
    full = torch.arange(24.0).reshape(8, 3)
    fragments = [f for r in range(tp) for f in cut(full, spec, r, tp, [c for c in cuts[r] if c < 24 // tp])]
    owners: dict[int, list[Fragment]] = {}
    for fragment, rank in zip(fragments, ranks, strict=False):
        owners.setdefault(rank, []).append(fragment)
    for rank, owned in owners.items():
        write(folder, rank, owned)
    tensors = opened(folder)
    assert torch.equal(tensors.read("weight", "x"), full)
    for size in (1, 2, 4):
        for rank in range(size):
            assert torch.equal(tensors.read_shard("weight", spec, rank, size), shard(full, spec, rank, size))


def test_fused_sections_are_put_together_section_by_section(tmp_path: Path) -> None:
    write_cut(tmp_path)
    shards = [load_file(tmp_path / name_of(rank))[f"weight/cut/{rank}/0"].view(4, 3)[:, 0].tolist() for rank in (0, 1)]
    assert shards == [[0, 3, 12, 15], [6, 9, 18, 21]]
    assert torch.equal(opened(tmp_path).read("weight", "cut"), FULL["cut"])


def test_padding_of_the_vocabulary_follows_the_reader(tmp_path: Path) -> None:
    embedding = torch.randn(29, 3)
    source = tmp_path / "first"
    source.mkdir()
    padded = torch.cat([embedding, torch.zeros(1, 3)])
    write(source, 0, cut(padded, ShardSpec("embedding.weight", (30, 3), 0, (30,), 1)))
    for tp, rows in ((3, 45), (4, 40), (1, 30)):
        spec = ShardSpec("embedding.weight", (rows, 3), 0, (rows,), rows - 29)
        parts = [opened(source).read_shard("weight", spec, rank, tp) for rank in range(tp)]
        assert torch.equal(torch.cat(parts)[:29], embedding)
        assert torch.cat(parts)[29:].abs().sum() == 0
        source = tmp_path / str(tp)
        source.mkdir()
        for rank, part in enumerate(parts):
            write(source, rank, [Fragment("weight", spec, rank, tp, 0, part.reshape(-1))])


def test_kinds_are_kept_apart(tmp_path: Path) -> None:
    moment = -FULL["cut"]
    write(tmp_path, 0, cut(FULL["cut"], SPECS["cut"]), cut(moment, SPECS["cut"], kind="exp_avg"))
    tensors = opened(tmp_path)
    assert torch.equal(tensors.read("exp_avg", "cut"), moment)
    assert torch.equal(tensors.read("weight", "cut"), FULL["cut"])
    assert (tensors.names(), tensors.names("exp_avg_sq")) == (["cut"], [])
    with pytest.raises(CheckpointError, match=r"must hold exp_avg_sq of cut, but does not; give model\.\*"):
        tensors.read("exp_avg_sq", "cut")


def test_a_rank_without_fragments_writes_no_file(tmp_path: Path) -> None:
    assert not write_fragments(tmp_path / name_of(3), [])
    assert os.listdir(tmp_path) == []


def test_no_tensors_at_all(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"must hold tensors .* but holds none"):
        opened(tmp_path)


def test_only_files_that_are_named_are_opened(tmp_path: Path) -> None:
    write_cut(tmp_path)
    (tmp_path / name_of(9)).write_text("of somebody else")
    names = [name_of(0), name_of(1), "config.yaml"]
    assert torch.equal(TensorFolder(tmp_path, names).read("weight", "cut"), FULL["cut"])
    with pytest.raises(CheckpointError, match=r"rank_00009\.safetensors must hold fragments"):
        opened(tmp_path)


@pytest.mark.parametrize(("tp", "lost"), [(2, 0), (2, 1), (4, 3), (4, 1)])
def test_a_missing_rank_is_told(tmp_path: Path, tp: int, lost: int) -> None:
    write_cut(tmp_path, tp)
    (tmp_path / name_of(lost)).unlink()
    with pytest.raises(CheckpointError, match=rf"elements from 0 on of tensor-parallel rank {lost} are missing"):
        opened(tmp_path).read("weight", "cut")


X = ShardSpec("x", (10,))
TEN = torch.arange(10.0)


def run_of(start: int, stop: int) -> Fragment:
    return Fragment("weight", X, 0, 1, start, TEN[start:stop].clone())


@pytest.mark.parametrize(
    ("parts", "element"),
    [
        ([[(0, 4), (6, 10)]], 4),
        ([[(0, 4)], [(4, 9)]], 9),
        ([[(2, 10)]], 0),
        ([[(0, 10)], [(0, 10)]], 0),
        ([[(0, 6)], [(4, 10)]], 4),
        ([[(0, 10)], [(3, 5)]], 3),
        ([[(0, 10)], [(9, 10)]], 9),
        ([[(0, 5)], [(5, 10)], [(5, 10)]], 5),
    ],
)
def test_every_element_must_be_there_once(
    tmp_path: Path, parts: Sequence[Sequence[tuple[int, int]]], element: int
) -> None:
    for rank, runs in enumerate(parts):
        write(tmp_path, rank, [run_of(*run) for run in runs])
    with pytest.raises(CheckpointError, match=rf"must hold all of weight of x, but: elements from {element} on") as e:
        opened(tmp_path).read("weight", "x")
    assert "missing or there twice" in str(e.value)


def test_more_elements_than_the_tensor_has(tmp_path: Path) -> None:
    write(tmp_path, 0, [run_of(0, 10), Fragment("weight", X, 0, 1, 10, torch.zeros(3))])
    with pytest.raises(CheckpointError, match="elements from 10 on"):
        opened(tmp_path).read("weight", "x")


def test_shards_of_different_cuts_are_no_tensor(tmp_path: Path) -> None:
    write_cut(tmp_path, 2)
    write(tmp_path, 1, cut(FULL["cut"], SPECS["cut"], 1, 4))
    with pytest.raises(CheckpointError, match=r"cut is sharded for different numbers of ranks: \[2, 4\]"):
        opened(tmp_path).read("weight", "cut")
    other = ShardSpec("cut", (8, 3), 0, (8,))
    write(tmp_path, 1, cut(FULL["cut"], other, 1, 2))
    with pytest.raises(CheckpointError, match=r"rank_00001.* but as .* elsewhere"):
        opened(tmp_path)


def test_a_rank_beyond_the_tensor_parallel_size(tmp_path: Path) -> None:
    write(tmp_path, 0, [Fragment("weight", SPECS["cut"], 2, 2, 0, torch.zeros(12))])
    with pytest.raises(CheckpointError, match="different numbers of ranks"):
        opened(tmp_path).read("weight", "cut")


def test_a_tensor_parallel_size_that_does_not_divide(tmp_path: Path) -> None:
    write(tmp_path, 0, [Fragment("weight", SPECS["cut"], 0, 3, 0, torch.zeros(8))])
    with pytest.raises(CheckpointError, match=r"must hold all of weight of cut, but: .* divisible"):
        opened(tmp_path).read("weight", "cut")


def test_another_models_tensor_names_the_keys_to_change(tmp_path: Path) -> None:
    write_cut(tmp_path)
    with pytest.raises(CheckpointError, match=r"cut must have shape \(8, 4\) for this model, but has \(8, 3\)") as e:
        opened(tmp_path).read_shard("weight", ShardSpec("cut", (8, 4), 0, (8,)), 0, 1)
    assert "give model.* the values of the run that saved it" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_full_disk_while_writing_is_a_storage_error(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = Fragment("weight", ShardSpec("x", (100_000,)), 0, 1, 0, torch.zeros(100_000))
    try:
        # The kernel refuses to let a file grow beyond this; a full disk cannot be had without mounting one.
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        with pytest.raises(OSError, match="File too large") as caught:
            write_fragments(tmp_path / "x.safetensors", [big])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "x.safetensors")


def test_what_the_library_says_of_a_full_disk_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("trainer.checkpoint.fragments.save_file", fail)
    with pytest.raises(StorageError, match=f"the disk is full .{os.strerror(28)}"), storage_faults(tmp_path):
        write_fragments(tmp_path / "x.safetensors", [run_of(0, 10)])


def test_another_fault_of_the_library_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("InvalidTensorView")

    monkeypatch.setattr("trainer.checkpoint.fragments.save_file", fail)
    with pytest.raises(SafetensorError, match="InvalidTensorView"):
        write_fragments(tmp_path / "x.safetensors", [run_of(0, 10)])


@pytest.mark.parametrize(("tp", "size", "share"), [(4, 4, 1), (2, 4, 2), (4, 2, 2), (4, 1, 4)])
def test_a_rank_reads_only_fragments_that_hold_a_part_of_its_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tp: int, size: int, share: int
) -> None:
    spec = ShardSpec("x", (8, 3), 0, (8,))
    full = torch.arange(24.0).reshape(8, 3)
    for rank in range(tp):
        write(tmp_path, rank, cut(full, spec, rank, tp))
    read: list[int] = []

    def counted(path: Path, first_byte: int, numel: int) -> torch.Tensor:
        read.append(numel)
        return read_values(path, first_byte, numel)

    monkeypatch.setattr("trainer.checkpoint.fragments.read_values", counted)
    tensors = opened(tmp_path)
    for rank in range(size):
        read.clear()
        assert torch.equal(tensors.read_shard("weight", spec, rank, size), shard(full, spec, rank, size))
        assert sum(read) == 24 // 4 * share


def test_a_tensor_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.checkpoint.fragments.BLOCK", 5)
    write_cut(tmp_path, 4)
    tensors = opened(tmp_path)
    assert torch.equal(tensors.read("weight", "cut"), FULL["cut"])
    for rank in range(2):
        found = tensors.read_shard("weight", SPECS["cut"], rank, 2)
        assert torch.equal(found, shard(FULL["cut"], SPECS["cut"], rank, 2))


def test_a_tensor_that_is_cut_along_another_dimension_now(tmp_path: Path) -> None:
    write_cut(tmp_path)
    other = ShardSpec("cut", (8, 3), 1, (3,))
    assert torch.equal(opened(tmp_path).read_shard("weight", other, 2, 3), FULL["cut"][:, 2:])
    assert torch.equal(opened(tmp_path).read_shard("weight", ShardSpec("cut", (8, 3)), 0, 1), FULL["cut"])


def test_a_file_that_vanishes_is_told(tmp_path: Path) -> None:
    write_cut(tmp_path)
    tensors = opened(tmp_path)
    (tmp_path / name_of(1)).unlink()
    with pytest.raises(CheckpointError, match=r"rank_00001\.safetensors must be readable, but: .*No such file"):
        tensors.read("weight", "cut")
