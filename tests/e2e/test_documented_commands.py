"""The commands of README and tutorial, run as they are where a laptop can, and cut down where it takes a cluster."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command import rows, run, trident
from tests.house.test_docs import README_COMMANDS, ROOT
from trainer.config.compose import compose
from trainer.config.plan import make_plan
from trainer.config.schema import DataSource

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SMALL = (
    *("train.steps=1", "model.hidden_size=64", "model.num_attention_heads=8", "model.num_key_value_heads=null"),
    *("model.ffn_hidden_size=null", "model.seq_length=32", "batch.global_batch_size=8", "batch.micro_batch_size=1"),
    *("runtime.device=cpu", "logging.wandb=offline", "checkpoint=none", "schedule.warmup_steps=0"),
)
"""Every command, with these behind it, does the same on a laptop: same layout, ZeRO, precision, data, kind of model."""
NEEDS = {DataSource.hub: "a download", DataSource.megatron: "shards that only the reader has"}
TRAIN = [line for line in README_COMMANDS if line.startswith("trident train")]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("line", TRAIN)
def test_a_train_command_of_the_readme_trains(line: str, tmp_path: Path) -> None:
    words = shlex.split(line, comments=True)[2:]
    if "model=hf" in words:
        pytest.skip("needs a published model; test_your_model.py runs it with another one")
    missing = NEEDS.get(compose(words).data.source)
    if missing:
        pytest.skip(f"needs {missing}; that it is legal is tested elsewhere")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_text('{"text": "so much text that it can be learnt"}\n' * 3000)
    (tmp_path / "chats").mkdir()
    chat = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello."}]}'
    (tmp_path / "chats" / "a.jsonl").write_text(f"{chat}\n" * 300)
    small = [*words, *SMALL, "model.num_layers=4", "run_dir=R"]
    ended = run(trident("train", *small), tmp_path, 500)
    assert ended.code == 0, ended.out + ended.err
    assert len(rows(tmp_path / "R")) == 1
    assert make_plan(compose(small), 300).world_size == make_plan(compose(words), 300).world_size


@pytest.mark.timeout(3600)
def test_the_tutorials_commands_give_its_losses(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "docs" / "measure_tutorial.py"), "--folder", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=3500, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    steps = {row["step"]: row["train/loss"] for row in rows(tmp_path / "runs" / "one")}
    for name in ("dp2", "at_once", "in_turns", "pp2", "pp2_16", "tp2", "all_three", "offload", "offload_3"):
        for row in rows(tmp_path / "runs" / name):
            assert row["train/loss"] == pytest.approx(steps[row["step"]], rel=1e-4), name


@pytest.mark.timeout(900)
def test_the_demo(tmp_path: Path) -> None:
    """launch/demo.sh in an environment that setup.sh takes for installed, with fewer steps."""
    place = tmp_path / "venv"
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").symlink_to(sys.executable)
    content = (ROOT / "setup.cfg").read_bytes() + (ROOT / "constraints.txt").read_bytes()
    stamp = subprocess.run(["cksum"], input=content, capture_output=True, check=True).stdout.decode().strip()
    (place / f".trident-{stamp.replace(' ', '-')}").touch()
    (place / "bin" / "trident").write_text(f'#!/bin/sh\nexec {sys.executable} -m trainer "$@"\n')
    (place / "bin" / "trident").chmod(0o755)
    environment = {"TRIDENT_VENV": str(place), "PYTHONPATH": str(ROOT)}
    words = ["bash", str(ROOT / "launch" / "demo.sh"), str(tmp_path / "R"), "train.steps=3", "schedule.warmup_steps=0"]
    ended = run(words, tmp_path, 800, environment)
    assert ended.code == 0, ended.out + ended.err
    assert [row["step"] for row in rows(tmp_path / "R")][-1] == 3
    assert re.search(r"what it writes after 'def ':\ndef ", ended.out)
