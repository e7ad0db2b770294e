"""Completion as a person has it: installed, and asked for with the tabulator in real shells."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Run
from tests.helpers.typist import LINE_AWAY, Typist

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own home folder, with a `trident` that is on the path."""
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    folder = place / "home"
    (folder / "bin").mkdir(parents=True)
    command = folder / "bin" / "trident"
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m trainer "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    (place / "corpus").mkdir()
    (place / "my data").mkdir()
    for file in ("corpus/a.txt", "my data/it's.txt"):
        (place / file).touch()
    (place / "conf" / "experiment").mkdir(parents=True)
    (place / "conf" / "experiment" / "mine_own.yaml").write_text("train: {steps: 3}\n")
    (place / "runs" / "mine" / "checkpoints" / "step_7").mkdir(parents=True)
    (place / "runs" / "mine" / "config.yaml").touch()
    return folder


COMMON = [
    ("trident tr\t", "trident train "),
    ("trident train model=mis\t", "model=mistral_7b"),
    ("trident train precision.dty\t", "precision.dtype="),
    ("trident train precision.dtype=bf\t", "precision.dtype=bf16"),
    ("trident train experiment=mine\t", "experiment=mine_own"),
    ("trident train data.files=corpus/\t", "data.files=corpus/a.txt"),
    ("trident train lr\t", "optimizer.lr="),
    ("trident train --config-d\t", "--config-dir"),
    ("trident generate checkpoint=runs/mine/\t", "checkpoint=runs/mine/checkpoints/step_7"),
    ("trident checkpoint ver\t", "checkpoint verify"),
]


def complete_all(shell: str, words: list[str], place: Path, more: list[tuple[str, str]]) -> None:
    environment = {**os.environ, "TERM": "xterm" if shell == "fish" else "dumb", "PS1": "ready> "}
    with Typist([shell, *words], place, environment) as typist:
        typist.type("echo is''there\r", "isthere")
        for keys, expected in [*COMMON, *more]:
            typist.type(LINE_AWAY + keys, expected)


@pytest.mark.parametrize("breaks", ["", "COMP_WORDBREAKS=${COMP_WORDBREAKS//[=:]/}\n"], ids=["as it is", "no breaks"])
def test_bash(breaks: str, trident: Run, home: Path, place: Path) -> None:
    (home / ".bashrc").write_text(breaks)
    assert trident("--install-completion", "bash").code == 0
    more = [
        ("trident train data.files=my\t", "data.files=my\\ data/"),
        ("trident train data.files=my\\ data/\t", "it\\'s.txt "),
        ("trident train 'data.files=[my\t", "'data.files=[my data/"),
        ('trident train "data.files=[my data/\t', "it's.txt\""),
        ("FOO=1 trident tr\t", "trident train "),
    ]
    complete_all("bash", ["--noprofile", "-i"], place, more)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh(trident: Run, home: Path, place: Path) -> None:
    assert trident("--install-completion", "zsh").code == 0
    more = [
        ("trident train data.files=my\t", "data.files=my\\ data/"),
        ("trident train 'data.files=[my\t", "'data.files=[my data/"),
        ("trident train data.files=\\[a,cor\t", "data.files=\\[a,corpus/"),
    ]
    complete_all("zsh", ["-i"], place, more)


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish(trident: Run, home: Path, place: Path) -> None:
    assert trident("--install-completion", "fish").code == 0
    more = [
        ("trident train data.files=my\t", "data.files=my\\ data/"),
        ("trident train 'data.files=[my\t", "'data.files=[my data/"),
    ]
    complete_all("fish", ["-i"], place, more)
