from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT
from trainer import __version__

HEAVY = ("torch", "deepspeed", "transformers", "datasets", "wandb", "safetensors")
BLOCKED = (
    "import sys\n"
    f"for name in {HEAVY}: sys.modules[name] = None\n"
    "from trainer.cli import main\n"
    "sys.exit(main(sys.argv[1:]))"
)
"""`trident` where importing any of these fails."""


def run(place: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRIDENT_CACHE": str(place / "cache")}
    return subprocess.run(
        [sys.executable, *command], cwd=place, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_as_a_module(tmp_path: Path) -> None:
    result = run(tmp_path, "-m", "trainer", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: trident VERB")
    assert run(tmp_path, "-m", "trainer", "trian").returncode == 2


def test_the_block_blocks(tmp_path: Path) -> None:
    result = run(tmp_path, "-c", BLOCKED.replace("from trainer.cli", "import torch\nfrom trainer.cli"), "--help")
    assert result.returncode == 1
    assert "import of torch halted" in result.stderr


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        (["--version"], 0, f"{__version__}\n", ""),
        (["--help"], 0, "usage: trident VERB", ""),
        (["train", "--help"], 0, "usage: trident train", ""),
        (["data", "--help"], 0, "usage: trident data", ""),
        (["generate", "--help"], 0, "usage: trident generate", ""),
        (["trian"], 2, "", "error: the verb must be one of"),
        (["train", "train.stesp=1"], 2, "", "error: there is no key 'train.stesp'"),
        (["train", "--local_rank=3", "layout=tp2", "model.num_attention_heads=3"], 2, "", "error: model."),
        (["train", "data=files", "data.files=[none.txt]"], 2, "", "error: data.files must name files that exist"),
        (["train", "run_dir=/dev/null/x"], 2, "", "error: run_dir must be a folder"),
        (["train", "checkpoint.resume=none"], 4, "", "error: checkpoint.resume must be"),
        (["generate", "top_p=2"], 2, "", "error: "),
        (["import", "--help"], 0, "usage: trident import", ""),
        (["import", "none", "target"], 2, "", "error: SRC must be a folder with config.json"),
        (["export", "--help"], 0, "usage: trident export", ""),
        (["export", "none", "target"], 4, "", "error: "),
        (["train", "model=hf", "model.path=none"], 2, "", "error: model.path must be a folder with config.json"),
        (["reshard", "--help"], 0, "usage: trident reshard", ""),
        (["reshard", "run", "layout=tp2"], 2, "", "error: usage must be `trident reshard SRC DST"),
        (["reshard", "none", "target", "layout=tp2"], 4, "", "error: "),
    ],
)
def test_help_and_wrong_input_need_no_torch(words: list[str], code: int, out: str, err: str, tmp_path: Path) -> None:
    result = run(tmp_path, "-c", BLOCKED, *words)
    assert result.returncode == code, result.stderr
    assert result.stdout.startswith(out)
    assert result.stderr.startswith(err)
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_parent_of_ranks_needs_no_torch(tmp_path: Path) -> None:
    code = BLOCKED.replace(
        "from trainer.cli",
        "import trainer.supervise\nfrom trainer.launcher.start import Outcome\n"
        "trainer.supervise.run_ranks = lambda *a, **k: Outcome(0, (), False)\nfrom trainer.cli",
    )
    words = ["data=synthetic", "model.vocab_size=512", "layout=pp2", "runtime.device=cpu", "run_dir=run"]
    result = run(tmp_path, "-c", code, "train", *words)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "run" / "plan.json").is_file()


def test_a_closed_pipe_is_no_fault(tmp_path: Path) -> None:
    command = f"{sys.executable} -m trainer train --help | head -1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
