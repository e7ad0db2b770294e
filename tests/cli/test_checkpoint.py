from __future__ import annotations

from pathlib import Path

import pytest

from trainer.checkpoint.manifest import MANIFEST, Manifest, file_facts
from trainer.cli import main
from trainer.loop.state import TrainState


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run folder with two checkpoints of one file each."""
    for step in (9, 10):
        folder = tmp_path / "checkpoints" / f"step_{step}"
        (folder / "tensors").mkdir(parents=True)
        file = folder / "tensors" / "rank_00000.safetensors"
        file.write_bytes(b"x" * 2048 * step)
        manifest = Manifest(
            step=step,
            vocab_size=257,
            train_state=TrainState(step, 1000 * step, 1000 * step, "abc", sample_length=8).to_dict(),
            scalars={"optimizer_step": float(step)},
            probe_loss=4.5,
            layout={"pipeline_parallel_size": 2, "tensor_parallel_size": 1, "data_parallel_size": 4},
            versions={"torch": "2.13.0"},
            files={"tensors/rank_00000.safetensors": file_facts(file)},
        )
        (folder / MANIFEST).write_text(manifest.to_json())
    return tmp_path


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def tensor_file(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step}" / "tensors" / "rank_00000.safetensors"


def test_ls(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensor_file(run_dir, 10).write_bytes(b"cut")
    assert main(["checkpoint", "ls", str(run_dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["9", "18.0", "KiB", "2", "x", "1", "x", "4", "whole"]
    assert lines[2].startswith("        10 ")
    assert "damaged" in lines[2]
    assert "must have 20480 bytes, but has 3" in lines[2]


def test_show(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "show", str(run_dir)]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if not line.startswith("t"))
    assert shown["step"] == "10"
    assert shown["files"] == "1, 20.0 KiB"
    assert "pipeline_parallel_size 2" in shown["saved"]
    assert shown["counters"] == "optimizer_step 10"


def test_verify_what_is_good(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "verify", str(run_dir)]) == 0
    assert capsys.readouterr().out.count("every byte is as it was saved") == 2
    assert main(["checkpoint", "verify", str(run_dir / "checkpoints" / "step_9")]) == 0
    assert capsys.readouterr().out.count("every byte is as it was saved") == 1


@pytest.mark.parametrize("name", ["tensors/rank_00000.safetensors", MANIFEST])
def test_verify_names_the_file_of_a_flipped_bit(run_dir: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    bad = run_dir / "checkpoints" / "step_9" / name
    flip(bad, 100)
    assert main(["checkpoint", "verify", str(run_dir)]) == 1
    shown = capsys.readouterr()
    assert shown.err.count("error: ") == 1
    assert str(bad) in shown.err
    assert shown.out.count("every byte is as it was saved") == 1


def test_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("ls", "show", "verify"):
        assert main(["checkpoint", action, str(tmp_path / "nowhere")]) == 4
        assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["ls"], ["list", "x"], ["verfy", "x"], ["ls", "x", "y"]])
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", *words]) == 2
    assert capsys.readouterr().err.startswith("error: usage must be `trident checkpoint ls|show|verify PATH`")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "--help"]) == 0
    assert "verify" in capsys.readouterr().out
