"""What a person sees on a terminal of 80 columns, and what the same run leaves in files."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from tests.helpers.command import LAUNCHER_NAMES, rows, trident

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
SMALL = ("model.num_layers=2", "model.hidden_size=64", "tokenizer=bytes", "data.max_documents=60", "runtime.device=cpu")


def on_terminal(command: list[str], cwd: Path, columns: int, environment: dict[str, str]) -> tuple[int, str]:
    """Run a command on a terminal of its own; return its exit code and all that the terminal was sent."""
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=secondary, stderr=secondary
    )
    os.close(secondary)
    sent = b""
    with os.fdopen(primary, "rb", buffering=0) as screen:
        try:
            while chunk := screen.read(65536):
                sent += chunk
        except OSError:
            pass  # the other end is closed
    try:
        return process.wait(60), sent.decode("utf-8")
    finally:
        process.kill()


def test_a_terminal_of_eighty_columns_in_the_c_locale_without_home_or_wandb(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in (*LAUNCHER_NAMES, "WANDB_MODE", "LC_ALL")}
    # Nothing can be made below it, not even by root; and nobody listens on this port.
    unusual = {"LANG": "C", "TERM": "xterm", "HOME": "/proc/no-home", "WANDB_API_KEY": "k" * 40}
    environment = {**kept, **unusual, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    command = trident("train", *SMALL, "train.steps=6", "train.eval_every=3", f"run_dir={tmp_path / 'R'}")
    texts = ("eval.samples=1", "eval.prompts=['def ']", "eval.max_tokens=12", "logging.csv=true", "layout=pp2")
    code, sent = on_terminal([*command, *texts, "logging.tensorboard=true"], tmp_path, 80, environment)
    assert code == 0, sent
    assert sent.isascii()
    lines = [line.rstrip() for line in _ESCAPE.sub("", sent).replace("\r", "\n").splitlines()]
    long = [line for line in lines if len(line) > 80]
    assert [line for line in long if str(tmp_path) not in line] == [], "only what is to be copied whole may be longer"
    for start in (
        "model   gpt_debug",
        "wandb   offline (http://127.0.0.1:9 cannot be reached from here)",
        "step 6 of 6",
    ):
        assert any(line.startswith(start) for line in lines), start
    assert any(line.startswith("memory  stage 0: ") for line in lines)
    assert "the model writes at step 3:" in lines
    assert sum(line.startswith("  1 | def ") for line in lines) == 2
    assert any(line.endswith(f"upload with: wandb sync {tmp_path / 'R' / 'wandb'}") for line in lines)
    last = [line for line in lines if line][-1]
    assert last.startswith("finished at step 6 after ")
    # What libraries say is in the logs, and so is what the run said.
    assert not any(word in sent for word in ("[INFO]", "Warning", "warning:", "Traceback"))
    log = (tmp_path / "R" / "logs" / "rank_0.log").read_text()
    assert last in log
    check_files(tmp_path / "R")


def check_files(run_dir: Path) -> None:
    """Every sink has every step."""
    steps = [row["step"] for row in rows(run_dir)]
    assert steps == [1, 2, 3, 4, 5, 6]
    with (run_dir / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == steps
    texts = [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]
    assert [(text["step"], text["prompt"]) for text in texts] == [(3, "def "), (6, "def ")]
    assert len(list((run_dir / "tensorboard").iterdir())) == 1
    assert len(list((run_dir / "wandb").glob("offline-run-*"))) == 1
