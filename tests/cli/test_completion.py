from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Run, check_style
from trainer.config.compose import options
from trainer.config.keys import KEYS
from trainer.generation.options import KEYS as GENERATE_KEYS
from trainer.verbs.complete import candidates
from trainer.verbs.shells import BEGIN, END, SHELLS, running_shell, script
from trainer.verbs.table import NAMES
from trainer.verbs.typed import Typed, read_line

BREAKS = " \t\n\"'><=;|&(:"
"""bash's own COMP_WORDBREAKS."""


def texts(line: str) -> list[str]:
    """Return what the last word of a line can become."""
    typed = read_line(line)
    return [one.text for one in candidates(typed.words, typed.current)]


@pytest.mark.parametrize(
    ("line", "typed"),
    [
        ("", Typed((), "", "", "")),
        ("a b ", Typed(("a", "b"), "", "", "")),
        ("a  b", Typed(("a",), "b", "", "")),
        ("a x=y", Typed(("a",), "x=y", "x=", "")),
        ("a x=y:z", Typed(("a",), "x=y:z", "x=y:", "")),
        (r"a x\=y\ z", Typed(("a",), "x=y z", "", "")),
        ("a 'x=[p q", Typed(("a",), "x=[p q", "", "'")),
        ('a x="p q', Typed(("a",), "x=p q", "x=", '"')),
        ("a 'x y' z", Typed(("a", "x y"), "z", "", "")),
        ("a '' z", Typed(("a", ""), "z", "", "")),
        (r'a "x\"y\z', Typed(("a",), r'x"y\z', "", '"')),
        ("a x'y'", Typed(("a",), "xy", "x", "")),
        ("a x\\", Typed(("a",), "x", "", "")),
    ],
)
def test_a_line_is_cut_as_a_shell_cuts_it(line: str, typed: Typed) -> None:
    assert read_line(line, BREAKS) == typed


@pytest.mark.parametrize(
    ("line", "word", "insertion"),
    [
        ("t x=y", "x=y z's", r"y\ z\'s"),
        ("t 'x=y", "x=y z's", r"x=y z'\''s"),
        ('t "x=y', 'x=y "$z"', r"x=y \"\$z\""),
        ("t x=y", "other", None),
    ],
)
def test_what_is_inserted_is_quoted(line: str, word: str, insertion: str | None) -> None:
    assert read_line(line, BREAKS).insertion(word) == insertion


def test_verbs_and_options_of_the_command() -> None:
    first = [name for name in NAMES if " " not in name]
    assert texts("") == [*first, "--help", "--version", "--install-completion", "--show-completion"]
    assert texts("--show-completion ") == list(SHELLS)
    assert texts("nonsense ") == []
    assert "inspect" in texts("data ")
    assert "--documents" in texts("data inspect --")


def test_settings(place: Path) -> None:
    found = texts("train ")
    assert {"model=", "model.", "run_dir=", "experiment=", "config="} <= set(found)
    assert texts("train mod") == ["model=", "model."]
    assert texts("train model.") == [f"{key}=" for key in KEYS if key.startswith("model.")]
    assert texts("train model=") == [f"model={name}" for name in options()["model"]]
    assert texts("train optimizer.weight") == ["optimizer.weight_decay="]
    assert texts("train zero.offload=") == ["zero.offload=none", "zero.offload=cpu", "zero.offload=nvme"]
    assert texts("train model.bias=") == ["model.bias=true", "model.bias=false"]
    assert [word.partition("=")[2] for word in texts("train layout.data_parallel_size=")] == ["auto", "null"]
    assert texts("train model=gpt2_124m,mistr") == ["model=gpt2_124m,mistral_7b"]
    assert {"cluster=h100", "cluster=cpu"} <= set(texts("train cluster="))
    assert texts("train cluster.device=H20") == ["cluster.device=H200-NVL", "cluster.device=H200", "cluster.device=H20"]
    assert texts("train --optimizer.weight") == ["--optimizer.weight_decay="]
    assert texts("train grad_cl") == ["optimizer.grad_clip="]
    assert texts("train nothing") == []


@pytest.mark.parametrize("key", sorted(KEYS))
def test_every_key_and_value_that_is_proposed_is_one(key: str, place: Path) -> None:
    from trainer.config.keys import coerce

    assert f"{key}=" in texts(f"train {key[:-1]}")
    for word in texts(f"train {key}="):
        value = word.partition("=")[2]
        coerce(key, KEYS[key], None if value == "null" else value)


def test_options_of_verbs(place: Path) -> None:
    (place / "mine").mkdir()
    assert texts("train --mul") == ["--multirun"]
    assert "--multirun" not in texts("train -m --")
    assert texts("train --config-dir ") == ["mine/"]
    assert texts("train --config-dir=") == ["--config-dir=mine/"]
    assert "--config-dir" in texts("train --config-dir mine --")
    assert texts("train --config-pa") == []
    assert texts("generate ") == [f"{key}=" for key in (*GENERATE_KEYS, "layout")]
    assert texts("generate temperature=1 top_k=1 t") == ["top_p=", "tokenizer="]


def test_own_folders_of_files_count(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("conf", "other", "third"):
        (place / folder / "experiment").mkdir(parents=True)
        (place / folder / "experiment" / f"in_{folder}.yaml").touch()
    assert texts("train experiment=in_") == ["experiment=in_conf"]
    assert "experiment=in_other" in texts("train --config-dir other experiment=in_")
    assert "experiment=in_other" in texts("train hydra.searchpath=[other] experiment=in_")
    monkeypatch.setenv("TRIDENT_CONFIG_DIR", str(place / "third"))
    assert texts("train experiment=in_") == ["experiment=in_conf", "experiment=in_third"]
    assert texts("train --config-dir nowhere experiment=in_c") == ["experiment=in_conf"]
    assert texts("train experiment=./conf/experiment/") == ["experiment=./conf/experiment/in_conf.yaml"]


def test_paths(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("corpus/a.txt", "corpus/b.pdf", "corpus/.hidden.txt", "only.pdf", "my data/c.txt"):
        (place / file).parent.mkdir(exist_ok=True)
        (place / file).touch()
    assert texts("train data.files=corpus/") == ["data.files=corpus/a.txt"]
    assert texts("train data.files=corpus/.") == ["data.files=corpus/.hidden.txt"]
    assert texts("train data.files=onl") == ["data.files=only.pdf"]
    assert texts("train 'data.files=[corpus/a.txt,my") == ["data.files=[corpus/a.txt,my data/"]
    assert texts("train data.cache_dir=c") == ["data.cache_dir=corpus/"]
    monkeypatch.setenv("HOME", str(place))
    assert texts("train data.files=~/corp") == ["data.files=~/corpus/"]
    assert texts("train data.files=nowhere/x") == []


def test_runs_and_checkpoints(place: Path) -> None:
    for step in (9, 10):
        (place / "runs" / "one" / "checkpoints" / f"step_{step}").mkdir(parents=True)
    (place / "runs" / "one" / "config.yaml").touch()
    (place / "runs" / "no_run").mkdir()
    steps = ["runs/one/checkpoints/step_10", "runs/one/checkpoints/step_9"]
    assert texts("checkpoint show ") == ["runs/one", "runs/"]
    assert texts("checkpoint show runs/o") == ["runs/one"]
    assert texts("checkpoint show runs/one/") == steps
    assert texts("generate checkpoint=runs/one/c") == [f"checkpoint={step}" for step in steps]
    assert texts("generate checkpoint=runs/one/checkpoints/step_1") == ["checkpoint=runs/one/checkpoints/step_10"]
    assert texts("train checkpoint.resume=a") == ["checkpoint.resume=auto"]
    assert texts("train checkpoint.resume=runs/o") == ["checkpoint.resume=runs/one"]
    assert texts("reshard runs/one new layout=tp2_pp4") == ["layout=tp2_pp4"]


def test_it_answers_without_torch_numpy_or_hydra_and_in_a_blink(place: Path) -> None:
    code = (
        "import sys, time\n"
        "for name in ('torch', 'numpy', 'hydra', 'omegaconf', 'deepspeed', 'antlr4'): sys.modules[name] = None\n"
        "from trainer.cli import main\n"
        f"for line in ('trident train model.', 'trident '): main(['--complete', 'bash', line, {BREAKS!r}])\n"
        "main(['--complete', 'zsh', 'model.', 'train'])\n"
        "main(['--complete', 'fish', \"'model.\", 'train'])\n"
        "print(time.process_time())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "RANK": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "closed"
    assert "model.hidden_size=\tWidth of the residual stream\topen" in lines
    assert "model.hidden_size=\tWidth of the residual stream" in lines
    assert float(lines[-1]) < 0.6, "several answers together, on a busy machine"


def test_show(trident: Run) -> None:
    for shell in SHELLS:
        assert trident("--show-completion", shell).out.rstrip() == script(shell).rstrip()
    assert "complete" in trident("--show-completion=bash").out


def test_scripts_are_right_for_their_shells() -> None:
    for shell in ("bash", "zsh", "fish"):
        if subprocess.run(["which", shell], capture_output=True, check=False).returncode == 0:
            subprocess.run([shell, "-n"], input=script(shell), text=True, check=True, timeout=60)


@pytest.fixture
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(place))
    return place


@pytest.mark.parametrize(("shell", "start"), [("bash", ".bashrc"), ("zsh", ".zshrc")])
def test_a_start_file_gets_one_block_and_keeps_the_rest(shell: str, start: str, trident: Run, home: Path) -> None:
    before = b"alias ll='ls -l'\n\xff\xfe not utf-8, and no line end"
    (home / start).write_bytes(before)
    (home / start).chmod(0o600)
    answer = trident("--install-completion", shell)
    assert answer.code == 0
    assert str(home / start) in answer.out
    text = (home / start).read_bytes()
    assert text.startswith(before + b"\n" + BEGIN.encode())
    assert text.endswith(END.encode() + b"\n")
    assert stat.S_IMODE((home / start).stat().st_mode) == 0o600
    again = trident("--install-completion", shell)
    assert again.out.count(" already") == 2
    assert (home / start).read_bytes() == text
    # A block of an older version gives way, and what was written after it stays.
    (home / start).write_bytes(text.replace(b"source", b"old") + b"alias x=y\n")
    assert "changed" in trident("--install-completion", shell).out
    assert (home / start).read_bytes() == text + b"alias x=y\n"


def test_a_start_file_behind_a_link_stays_there(trident: Run, home: Path) -> None:
    (home / "dotfiles").mkdir()
    (home / "dotfiles" / "bashrc").write_text("# mine\n")
    (home / ".bashrc").symlink_to("dotfiles/bashrc")
    assert trident("--install-completion", "bash").code == 0
    assert (home / ".bashrc").is_symlink()
    assert BEGIN in (home / "dotfiles" / "bashrc").read_text()


def test_folders_that_are_named_elsewhere(trident: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.setenv(name, str(home / name))
    for shell in SHELLS:
        trident("--install-completion", shell)
    assert (home / "XDG_DATA_HOME" / "bash-completion" / "completions" / "trident").is_file()
    assert (home / "ZDOTDIR" / ".zshrc").is_file()
    assert (home / "XDG_CONFIG_HOME" / "fish" / "completions" / "trident.fish").is_file()
    assert not (home / ".zshrc").exists()


def test_a_start_file_that_cannot_be_read_is_left_alone(refused: Run, home: Path) -> None:
    (home / ".bashrc").mkdir()
    (problem,) = refused("--install-completion", "bash").problems
    assert problem.startswith(f"{home}/.bashrc must be a file that can be read, but: ")


@pytest.mark.parametrize("text", [f"{BEGIN}\n", f"{END}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n", f"{END}\n{BEGIN}\n"])
def test_half_a_block_is_left_alone(text: str, refused: Run, home: Path) -> None:
    (home / ".bashrc").write_text(text)
    assert "must hold one block from" in refused("--install-completion", "bash").problems[0]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["bahs"], "--install-completion must name one of bash, zsh, fish, but is 'bahs'; did you mean 'bash'?"),
        (["bash", "zsh"], "--install-completion must be followed by one shell, but is by bash zsh"),
    ],
)
def test_a_wrong_shell(words: list[str], problem: str, refused: Run) -> None:
    assert refused("--install-completion", *words).problems == [problem]


def test_without_a_home(refused: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")
    check_style(refused("--install-completion", "fish"))


def test_the_running_shell_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    class Shell:
        def name(self) -> str:
            return "-zsh"

    class Process:
        def parents(self) -> list[Shell]:
            return [Shell()]

    monkeypatch.setattr(psutil, "Process", Process)
    assert running_shell({"SHELL": "/bin/bash"}) == "zsh"
    monkeypatch.setattr(Process, "parents", lambda self: [])
    assert running_shell({"SHELL": "/usr/bin/fish"}) == "fish"
    assert running_shell({"SHELL": "/bin/tcsh"}) is None
