"""Fragments: any cut comes back bit for bit, and whatever is not whole is told."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.checkpoint.fragment_fixtures import name_of, opened, write_cut
from trainer.checkpoint.fragments import FRAGMENTS_KEY, SPECS_KEY, TensorFolder
from trainer.errors import CheckpointError
from trainer.tensor_parallel.shard import ShardSpec


def file_of(folder: Path) -> Path:
    write_cut(folder, 1)
    return folder / name_of(0)


@pytest.mark.parametrize("keep", [0, 4, 60, -8])
def test_a_cut_off_file_is_named(tmp_path: Path, keep: int) -> None:
    path = file_of(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"rank_00000\.safetensors must hold fragments, but cannot be read"):
        opened(tmp_path)


def test_a_folder_in_place_of_a_file_and_a_file_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / name_of(0)).mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        opened(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        TensorFolder(tmp_path, [name_of(7)])


def test_random_damage_is_a_checkpoint_error_or_changes_numbers_only(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(8)
    for _ in range(300):
        damaged = bytearray(whole)
        at = int(torch.randint(0, len(whole), (), generator=generator))
        damaged[at] ^= 1 << int(torch.randint(0, 8, (), generator=generator))
        path.write_bytes(damaged)
        try:
            tensors = opened(tmp_path)
            for name in tensors.names():
                tensors.read("weight", name)
        except CheckpointError:
            continue


SPEC = {"name": "x", "global_shape": [2], "dim": None, "sections": [], "padding": 0}
PLACE = ["weight", "x", 0, 1, 0]


def metadata(spec: object = SPEC, place: object = PLACE) -> dict[str, str]:
    return {SPECS_KEY: json.dumps({"x": spec}), FRAGMENTS_KEY: json.dumps({"x": place})}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (None, f"metadata lack '{SPECS_KEY}'"),
        ({"format": "pt"}, f"metadata lack '{SPECS_KEY}'"),
        ({SPECS_KEY: "{}"}, f"metadata lack '{FRAGMENTS_KEY}'"),
        ({SPECS_KEY: "{}", FRAGMENTS_KEY: "{}"}, "metadata lack 'x'"),
        ({SPECS_KEY: "{}", FRAGMENTS_KEY: json.dumps({"x": PLACE})}, "x is of a tensor whose shape is not told"),
        ({SPECS_KEY: "{", FRAGMENTS_KEY: "{}"}, "cannot be read"),
        ({SPECS_KEY: "[]", FRAGMENTS_KEY: "{}"}, "cannot be read"),
        ({**metadata(), FRAGMENTS_KEY: "[" * 100_000}, "cannot be read"),
        (metadata({key: value for key, value in SPEC.items() if key != "sections"}), "metadata lack 'sections'"),
        (metadata({**SPEC, "dim": 5, "sections": [2]}), "cannot be read"),
        (metadata({**SPEC, "dim": "0", "sections": [2]}), "whole number of at least 0, but is '0'"),
        (metadata({**SPEC, "dim": 0, "sections": [3]}), "sections of x must add up to 2"),
        (metadata({**SPEC, "global_shape": [-2]}), "whole number of at least 0, but is -2"),
        (metadata({**SPEC, "global_shape": ["2"]}), "whole number of at least 0, but is '2'"),
        (metadata({**SPEC, "global_shape": 2}), "must hold lists of sizes"),
        (metadata({**SPEC, "dim": 0, "sections": [2], "padding": 3}), "less padding than rows"),
        (metadata({**SPEC, "padding": True}), "whole number"),
        (metadata(place=["weight", "x", 0, 0, 0]), "whole number of at least 1, but is 0"),
        (metadata(place=["weight", "x", -1, 1, 0]), "whole number of at least 0, but is -1"),
        (metadata(place=["weight", "x", 0, 1]), "cannot be read"),
        (metadata(place=["weight", "x", 0, 1, 0.5]), "whole number"),
        (metadata(place=["weight", ["x"], 0, 1, 0]), "cannot be read"),
        (metadata(place=7), "cannot be read"),
    ],
)
def test_metadata_that_do_not_tell_how_to_read_the_tensors(
    tmp_path: Path, told: dict[str, str] | None, words: str
) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / name_of(0), metadata=told)
    with pytest.raises(CheckpointError) as caught:
        opened(tmp_path)
    assert words in str(caught.value)
    assert str(tmp_path / name_of(0)) in str(caught.value)


def test_a_shape_that_no_bytes_stand_behind_takes_no_memory(tmp_path: Path) -> None:
    told = metadata({**SPEC, "global_shape": [2**60, 2**60]})
    save_file({"x": torch.zeros(2)}, tmp_path / name_of(0), metadata=told)
    with pytest.raises(CheckpointError, match="elements from 2 on"):
        opened(tmp_path).read("weight", "x")


def test_the_good_metadata_are_good(tmp_path: Path) -> None:
    assert asdict(ShardSpec("x", (2,))) == {**SPEC, "global_shape": (2,), "sections": (), "whole_sections": 0}
    # Files of earlier versions do not say which sections every rank holds whole.
    save_file({"x": torch.ones(2)}, tmp_path / name_of(0), metadata=metadata())
    assert opened(tmp_path).read("weight", "x").tolist() == [1, 1]


def test_half_precision_is_not_taken_for_fp32(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2, dtype=torch.float16)}, tmp_path / name_of(0), metadata=metadata())
    with pytest.raises(CheckpointError, match="x must be F32, but is F16"):
        opened(tmp_path)
