from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.reference import TINY, TINY_LLAMA
from trainer.checkpoint.weights import SPECS_KEY, read_weights, write_weights
from trainer.config.plan import make_model_spec
from trainer.config.schema import ModelConfig
from trainer.errors import CheckpointError, StorageError
from trainer.files import storage_faults
from trainer.model.gpt import GPT, ModelContext
from trainer.tensor_parallel.random import StepClock
from trainer.tensor_parallel.shard import ShardSpec, shard, shard_spec, without_padding
from trainer.topology.groups import FakeGroup

FULL = {"cut": torch.arange(24.0).reshape(8, 3), "whole": torch.tensor([1.0, 2.0])}
SPECS = {"cut": ShardSpec("cut", (8, 3), 0, (4, 4)), "whole": ShardSpec("whole", (2,))}


def write_model(folder: Path, model: ModelConfig, vocab_size: int, tp: int) -> dict[str, torch.Tensor]:
    """Write a model cut over tp ranks; return its whole tensors without padding, as one rank would build them."""
    for rank in range(tp):
        spec = make_model_spec(model, vocab_size, tp)
        gpt = GPT(ModelContext(spec, FakeGroup(rank, tp), 3, False, StepClock(3)))
        specs = {s.name: s for s in map(shard_spec, gpt.parameters())}
        write_weights(folder, 0, rank, {shard_spec(p).name: p.detach() for p in gpt.parameters()}, specs)
    one = GPT(ModelContext(make_model_spec(model, vocab_size, 1), FakeGroup(0, 1), 3, False, StepClock(3)))
    return {shard_spec(p).name: without_padding(p.detach(), shard_spec(p)) for p in one.parameters()}


def write_cut(folder: Path, tp: int = 2, stage: int = 0) -> None:
    for rank in range(tp):
        write_weights(folder, stage, rank, {n: shard(t, SPECS[n], rank, tp) for n, t in FULL.items()}, SPECS)


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
    found = read_weights(tmp_path)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    assert found["embedding.weight"].shape[0] == 29


def test_fused_sections_are_put_together_section_by_section(tmp_path: Path) -> None:
    write_cut(tmp_path)
    shards = [load_file(tmp_path / f"stage0_tp{rank}.safetensors")["cut"][:, 0].tolist() for rank in range(2)]
    assert shards == [[0, 3, 12, 15], [6, 9, 18, 21]]
    assert torch.equal(read_weights(tmp_path)["cut"], FULL["cut"])


def test_stages_are_put_together_and_a_tied_weight_may_be_on_two(tmp_path: Path) -> None:
    write_cut(tmp_path)
    write_weights(tmp_path, 11, 0, {"late": torch.ones(2)}, {"late": ShardSpec("late", (2,))})
    write_cut(tmp_path, stage=10)
    found = read_weights(tmp_path)
    assert found.keys() == {"cut", "whole", "late"}
    assert torch.equal(found["cut"], FULL["cut"])


def test_a_transposed_view_is_written_as_it_looks(tmp_path: Path) -> None:
    view = torch.arange(6.0).reshape(2, 3).t()
    write_weights(tmp_path, 0, 0, {"x": view}, {"x": ShardSpec("x", (3, 2))})
    assert torch.equal(read_weights(tmp_path)["x"], view)


def test_no_weights_at_all(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(CheckpointError, match=r"must hold weight shards \(stage.*\), but holds none"):
            read_weights(folder)


def test_strays_are_not_read(tmp_path: Path) -> None:
    write_cut(tmp_path)
    for name in (
        "stage0_tpx.safetensors",
        "stage_tp1.safetensors",
        "stage0_tp1.safetensors.tmp",
        "stage0_tp1_old.safetensors",
    ):
        (tmp_path / name).write_text("not weights")
    assert read_weights(tmp_path).keys() == FULL.keys()


@pytest.mark.parametrize(("tp", "lost"), [(2, 0), (2, 1), (4, 3), (4, 1)])
def test_a_missing_shard_is_named(tmp_path: Path, tp: int, lost: int) -> None:
    write_cut(tmp_path, tp)
    (tmp_path / f"stage0_tp{lost}.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=rf"must hold cut of {tp} tensor-parallel ranks, but lacks ranks \[{lost}\]"
    ):
        read_weights(tmp_path)


def test_shards_of_different_cuts_are_no_model(tmp_path: Path) -> None:
    write_cut(tmp_path, 2)
    halves = {n: shard(t, SPECS[n], 1, 4) for n, t in FULL.items()}
    write_weights(tmp_path, 0, 1, halves, SPECS)
    with pytest.raises(CheckpointError, match="must hold weights of one model, but cut on tensor-parallel rank 1 of 2"):
        read_weights(tmp_path)
    other = {**SPECS, "cut": ShardSpec("cut", (8, 3), 0, (8,))}
    write_weights(tmp_path, 0, 1, {n: shard(t, other[n], 1, 2) for n, t in FULL.items()}, other)
    with pytest.raises(CheckpointError, match=r"but as .* elsewhere"):
        read_weights(tmp_path)


def file_of(folder: Path) -> Path:
    write_cut(folder, 1)
    return folder / "stage0_tp0.safetensors"


@pytest.mark.parametrize("keep", [0, 4, 60, -8])
def test_a_cut_off_file_is_named(tmp_path: Path, keep: int) -> None:
    path = file_of(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"stage0_tp0\.safetensors must hold weight shards, but cannot be read"):
        read_weights(tmp_path)


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "stage0_tp0.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_weights(tmp_path)


SPEC = {"name": "x", "global_shape": [2], "dim": None, "sections": [], "padding": 0}


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (None, f"metadata lack '{SPECS_KEY}'"),
        ({"format": "pt"}, f"metadata lack '{SPECS_KEY}'"),
        ({SPECS_KEY: "{"}, "cannot be read"),
        ({SPECS_KEY: "[]"}, "cannot be read"),
        ({SPECS_KEY: "{}"}, "metadata lack 'x'"),
        ({SPECS_KEY: json.dumps({"x": 3})}, "cannot be read"),
        ({SPECS_KEY: json.dumps({"x": {**SPEC, "global_shape": 2}})}, "a shard spec must hold lists of sizes"),
        ({SPECS_KEY: json.dumps({"x": {**SPEC, "padding": None}})}, "a shard spec must hold lists of sizes"),
        (
            {SPECS_KEY: json.dumps({"x": {k: v for k, v in SPEC.items() if k != "sections"}})},
            "metadata lack 'sections'",
        ),
        ({SPECS_KEY: json.dumps({"x": {**SPEC, "dim": 5, "sections": [2]}})}, "cannot be read"),
        ({SPECS_KEY: json.dumps({"x": {**SPEC, "dim": 0, "sections": [3]}})}, "sections of x must add up to 2"),
        ({SPECS_KEY: json.dumps({"x": {**SPEC, "global_shape": [3]}})}, r"must have shape \(3,\), but has \(2,\)"),
        ({SPECS_KEY: json.dumps({"x": {**SPEC, "global_shape": [3], "dim": 0, "sections": [3]}})}, "must have shape"),
        (
            {SPECS_KEY: json.dumps({"x": {**SPEC, "global_shape": [2, 2], "dim": 1, "sections": [2]}})},
            "must have shape",
        ),
    ],
)
def test_metadata_that_do_not_tell_how_to_read_the_tensors(
    tmp_path: Path, metadata: dict[str, str] | None, words: str
) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "stage0_tp0.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=words):
        read_weights(tmp_path)


def test_a_full_disk_while_writing_is_a_storage_error(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"x": torch.zeros(100_000)}
    try:
        # The kernel refuses to let a file grow beyond this; a full disk cannot be had without mounting one.
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        with pytest.raises(OSError, match="File too large") as caught:
            write_weights(tmp_path, 0, 0, big, {"x": ShardSpec("x", (100_000,))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "stage0_tp0.safetensors")


def test_what_the_library_says_of_a_full_disk_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("trainer.checkpoint.weights.save_file", fail)
    with pytest.raises(StorageError, match=f"the disk is full .{os.strerror(28)}"), storage_faults(tmp_path):
        write_weights(tmp_path, 0, 0, {}, {})


def test_another_fault_of_the_library_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("InvalidTensorView")

    monkeypatch.setattr("trainer.checkpoint.weights.save_file", fail)
    with pytest.raises(SafetensorError, match="InvalidTensorView"):
        write_weights(tmp_path, 0, 0, {}, {})
