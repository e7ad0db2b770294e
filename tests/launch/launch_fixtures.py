"""What the tests of the launch scripts share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.helpers.command import rows

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
DOCKER = ROOT / "docker"
STUBS = Path(__file__).parent / "stubs"
GOLDEN = Path(__file__).parent / "golden"
SCRIPTS = sorted(path for folder in (LAUNCH, DOCKER) for path in folder.iterdir() if path.suffix in (".sh", ".sbatch"))
SETTINGS = (
    *("data=synthetic", "model.vocab_size=256", "layout=pp2", "batch.micro_batch_size=2", "runtime.device=cpu"),
    *("model.seq_length=32", "batch.global_batch_size=8", "logging.wandb=disabled", "train.steps=60"),
    "runtime.threads_per_rank=1",
)
"""A run that trains in seconds and lasts long enough to be interrupted; its sums do not depend on a node's ranks."""
START_S = 400
OTHERS = ("SLURM_", "OMPI_", "PMI_", "NCCL_", "GLOO_", "OMP_", "HF_", "WANDB_", "TRIDENT_", "DS_")
"""Variables that the scripts look at; a test sets those that it means."""
Curve = list[tuple[int, float, float]]


def call(
    *words: str | Path, environment: Mapping[str, str] | None = None, cwd: Path | None = None, timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, with this environment's Trident and nothing else that they read."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OTHERS)}
    for name in ("LD_LIBRARY_PATH", "PYTHONPATH"):
        kept.pop(name, None)
    return subprocess.run(
        ["bash", *map(str, words)],
        env={**kept, "TRIDENT_VENV": sys.prefix, **(environment or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def with_stubs(log: Path | None = None) -> dict[str, str]:
    """Return an environment in which the cluster's commands are stand-ins."""
    found = {"PATH": f"{STUBS}{os.pathsep}{os.environ['PATH']}", "TRIDENT_VENV": sys.prefix}
    return {**found, "STUB_LOG": str(log)} if log else found


def stand_in(venv: Path, interpreter: str) -> dict[str, str]:
    """Make a virtual environment whose Python is a shell script; return what the scripts must be told of it."""
    path = venv / "bin" / "python"
    path.parent.mkdir()
    path.write_text(interpreter)
    path.chmod(0o755)
    return {"TRIDENT_VENV": str(venv)}


def noted(log: Path) -> list[list[str]]:
    """Return the command lines that stand-ins wrote down."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def curve(run_dir: Path) -> Curve:
    """Return step, loss and gradient norm of every row."""
    return [(row["step"], row["train/loss"], row["train/grad_norm"]) for row in rows(run_dir)]
