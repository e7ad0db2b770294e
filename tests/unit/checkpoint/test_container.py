"""The container that is written piece by piece is a safetensors file like any other."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from trainer.checkpoint.container import ContainerWriter, read_header, read_values
from trainer.checkpoint.manifest import file_facts

VALUES = {"b": torch.arange(5.0), "a/é": torch.tensor([-0.0, float("nan"), float("inf")]), "c": torch.ones(1)}


def write(path: Path, metadata: dict[str, str] | None = None) -> ContainerWriter:
    writer = ContainerWriter(path, {key: value.numel() for key, value in VALUES.items()}, metadata or {})
    for value in VALUES.values():
        for element in torch.split(value, 2):
            writer.append(element)
    return writer


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32)


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    told = {"words": 'ä "quoted" \\', "more": "1"}
    facts = write(path, told).finish()
    assert facts == file_facts(path)
    found = load_file(path)
    assert found.keys() == VALUES.keys()
    assert all(torch.equal(bits(found[key]), bits(VALUES[key])) for key in VALUES)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == told


@pytest.mark.parametrize("by_library", [False, True])
def test_it_is_read_piece_by_piece(tmp_path: Path, by_library: bool) -> None:
    path = tmp_path / "x.safetensors"
    if by_library:
        save_file(VALUES, path, metadata={"k": "v"})
    else:
        write(path, {"k": "v"}).finish()
    metadata, tensors = read_header(path)
    assert metadata == {"k": "v"}
    assert {key: numel for key, (_, numel) in tensors.items()} == {"a/é": 3, "b": 5, "c": 1}
    first, _ = tensors["b"]
    assert read_values(path, first, 5).tolist() == [0, 1, 2, 3, 4]
    assert read_values(path, first + 4, 3).tolist() == [1, 2, 3]
    assert torch.equal(bits(read_values(path, tensors["a/é"][0], 3)), bits(VALUES["a/é"]))


def test_data_begin_at_a_multiple_of_eight_bytes(tmp_path: Path) -> None:
    for length in range(9):
        path = tmp_path / f"{length}.safetensors"
        write(path, {"k": "x" * length}).finish()
        assert read_header(path)[1]["b"][0] % 8 == 0


def test_what_was_declared_must_come(tmp_path: Path) -> None:
    writer = ContainerWriter(tmp_path / "x", {"a": 2}, {})
    writer.append(torch.zeros(1))
    with pytest.raises(ValueError, match=r"must get \d+ bytes, but got"):
        writer.finish()
    writer.append(torch.zeros(2))
    with pytest.raises(ValueError, match=r"must get \d+ bytes, but got"):
        writer.finish()


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(FileExistsError):
        ContainerWriter(tmp_path / "x", {"a": 2}, {})
    assert (tmp_path / "x").read_text() == "mine"


def test_a_write_that_takes_only_a_part_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: whole(handle, data[:3]))
    facts = write(tmp_path / "x").finish()
    assert facts == file_facts(tmp_path / "x")
    assert torch.equal(load_file(tmp_path / "x")["b"], VALUES["b"])


def test_a_full_disk_is_said_by_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ContainerWriter(tmp_path / "x", {"a": 2}, {})
    handles = set(os.listdir("/proc/self/fd"))

    def full(handle: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        writer.append(torch.zeros(2))
    assert set(os.listdir("/proc/self/fd")) == handles, "the file was left open"


def test_other_numbers_than_fp32_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, dtype=torch.float16)}, tmp_path / "x")
    with pytest.raises(ValueError, match="a must be F32, but is F16"):
        read_header(tmp_path / "x")


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write(path).finish()
    first = read_header(path)[1]["c"][0]
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(OSError, match="shorter than its header says"):
        read_values(path, first, 1)
    with pytest.raises(SafetensorError):
        read_header(path)
