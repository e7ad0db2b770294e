from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks.case import CASES, GPU_SEQ_LENGTHS, gpu_case
from benchmarks.settings import Settings
from benchmarks.suites import SUITES
from tests.house.checks import ROOT, Module, lengths


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fast", "argument suite: invalid choice: 'fast'"),
        ("", "the following arguments are required: suite"),
        ("single --case big", "argument --case: invalid choice: 'big'"),
        ("single --only nobody", "--only: there is no contender 'nobody'; choose from plain loop; trident;"),
        ("memory --only nobody", "--only: there is no contender 'nobody'; choose from defaults;"),
        ("single --rounds 0", "argument --rounds: must be a whole number from 1, but is '0'"),
        ("single --micro-batch-size 3", "--micro-batch-size must divide the case's global batch of 8, but is 3"),
        ("single --site nowhere", "--site must name a folder, but there is no nowhere"),
        ("single --dry", "--dry, --models and --seq-lengths belong to the suites gpu and kernels, not"),
        ("single --variant x", "--variant belongs to the suite variants, not to single"),
        ("variants --variant ranks=two", "--variant: ranks must be a whole number from 1, but is 'two'"),
        ("gpu --dry --models 3b", "--models: there is no size '3b'; choose from 124m; 350m;"),
        ("gpu --dry --seq-lengths 7", "--seq-lengths: there is no length '7'; choose from 1024; 2048; 8192"),
        ("gpu --dry --seq-lengths x", "--seq-lengths must be a whole number from 1, but is 'x'"),
        ("kernels --dry --models 3b", "--models: there is no size '3b'; choose from 124m; 350m;"),
        ("kernels --dry --seq-lengths 7", "--seq-lengths: there is no length '7'; choose from 1024; 2048; 8192"),
        ("kernels --only trident", "--only: there is no part 'trident'; choose from products; attention; loss"),
        ("gpu --dry --only nobody", "--only: there is no contender 'nobody'; choose from trident;"),
    ],
)
def test_a_wrong_word_is_one_line_and_two(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(words.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {message}")
    assert shown.err.count("\n") == 1


def test_gpu_needs_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # By hand: the package's attribute of this name is the suite.
    monkeypatch.setattr(importlib.import_module("benchmarks.suites.gpu"), "gpu_names", list)
    monkeypatch.setattr(command, "gpu_names", list)
    assert command.main(["gpu"]) == 2
    assert "error: the suite gpu needs a CUDA device, but there is none; --dry" in capsys.readouterr().err
    assert command.main(["single", "--case", "gpu_124m"]) == 2
    assert capsys.readouterr().err == "error: --case gpu_124m needs a CUDA device, but there is none\n"


def test_help_names_every_suite_and_case(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in SUITES)
    assert all(name in text for name in CASES)


def test_words_become_settings(tmp_path: Path) -> None:
    words = [
        "gpu",
        "--dry",
        "--only",
        "a b; c",
        "--models",
        "124m,350m",
        "--seq-lengths",
        "1024",
        "--site",
        str(tmp_path),
    ]
    suite, settings = command.settings_of(words)
    expected = Settings(only=("a b", "c"), models=("124m", "350m"), seq_lengths=(1024,), dry=True, site=str(tmp_path))
    assert (suite, settings) == ("gpu", expected)


@pytest.mark.parametrize(
    ("size", "billions"), [("124m", 0.124), ("350m", 0.355), ("1.3b", 1.31), ("2.7b", 2.65), ("6.7b", 6.66)]
)
def test_gpu_cases_have_the_sizes_of_their_names(size: str, billions: float) -> None:
    assert gpu_case(size, 1024).plan().model.parameter_count / 1e9 == pytest.approx(billions, rel=0.01)
    for length in GPU_SEQ_LENGTHS:
        case = gpu_case(size, length)
        assert case.tokens_per_step == 1 << 17
        assert case.global_batch_size % case.micro_batch_size == 0


def test_files_and_functions_are_short() -> None:
    modules = [
        Module(".".join(path.relative_to(ROOT).with_suffix("").parts), path.read_text())
        for path in sorted((ROOT / "benchmarks").rglob("*.py"))
    ]
    assert len(modules) > 15
    assert lengths(modules) == []
