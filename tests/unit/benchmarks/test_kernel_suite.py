from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from benchmarks.arena import Contender, ContenderFailed, Turn
from benchmarks.case import CASES, GPT3
from benchmarks.settings import Settings, UsageError

# By hand: the package's attribute of this name is the suite.
MODULE = importlib.import_module("benchmarks.suites.kernels")
CONTENDER = Contender("kernels", "kernels", CASES["tiny"])


class Worker:
    """Answers with these, and fails if it is told to."""

    answers: list[Any] = []  # noqa: RUF012 - set by each test
    closed = 0

    def __init__(self, contender: Contender, logs: Path) -> None:
        if not self.answers:
            raise ContenderFailed("ImportError: no module named x")

    def turn(self, steps: int) -> Turn:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Turn(1.0, (0.0,), {"rows": answer})

    def close(self) -> None:
        type(self).closed += 1


def measured(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> dict[str, Any]:
    monkeypatch.setattr(MODULE, "Running", Worker)
    monkeypatch.setattr(Worker, "answers", list(answers))
    monkeypatch.setattr(Worker, "closed", 0)
    found: dict[str, Any] = MODULE._measured(CONTENDER, MODULE.PARTS, Path())
    return found


def test_what_was_measured_before_the_process_died_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, [{"case": "x"}], ContenderFailed("rank 0 died: illegal memory access"))
    died = {"skipped": "rank 0 died: illegal memory access"}
    assert found == {"products": [{"case": "x"}], "attention": died, "loss": died}
    assert Worker.closed == 1


def test_a_process_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch)
    assert found == {part: {"skipped": "ImportError: no module named x"} for part in MODULE.PARTS}
    assert "Head and loss: skipped: ImportError: no module named x" in MODULE.kernel_tables(found)


def test_every_part_has_a_table() -> None:
    start = {"case": "x", "rows": 8}
    times = {"forward_s": 0.001, "both_s": 0.003}
    rates = {"forward": 1.5, "input_gradient": 2.5, "weight_gradient": 0.01234}
    found = {
        "products": [{**start, "product": "up", "in": 1, "out": 2, "library": "oneDNN", "tflops": rates}],
        "attention": [
            {**start, "backend": "flash", "choice": "flash", **times},
            {**start, "backend": "math", "choice": "flash", **times},
        ],
        "loss": [
            {**start, "way": "fused", "peak_bytes": 3 << 20, "loss_error": 1e-7, "gradient_error": 2e-7, **times},
            {**start, "way": "Liger", "failed": "no kernel"},
            {"case": "y", "failed": "OutOfMemoryError: x"},
        ],
    }
    products, attention, loss = MODULE.kernel_tables(found).split("\n\n")[1::2]
    assert cells(products, 2) == ["x", "up", "8", "1", "2", "oneDNN", "1.5", "2.5", "0.0123"]
    assert cells(attention, 2)[-4:] == ["flash", "1.000", "3.000", "yes"]
    assert cells(attention, 3)[-1] == ""
    assert cells(loss, 2)[-4:] == ["1.000", "3.000", "3", "1e-07, 2e-07"]
    assert cells(loss, 3)[-4:] == ["failed: no kernel", "-", "-", "-"]
    assert cells(loss, 4)[:2] == ["y", "-"]


def cells(text: str, line: int) -> list[str]:
    return [cell.strip() for cell in text.splitlines()[line].strip("|").split("|")]


def test_shapes_are_those_of_the_device_at_hand() -> None:
    tiny = Settings(case=CASES["tiny"])
    assert MODULE.cases_of(tiny, has_gpu=False) == {part: [CASES["tiny"]] for part in MODULE.PARTS}
    found = MODULE.cases_of(Settings(only=("attention", "loss")), has_gpu=True)
    assert {part: len(cases) for part, cases in found.items()} == {"attention": 3 * len(GPT3), "loss": len(GPT3)}
    assert {case.tokens_in_micro_batch for cases in found.values() for case in cases} == {1 << 14}
    few = MODULE.cases_of(Settings(models=("124m",), seq_lengths=(8192,)), has_gpu=True)
    assert [[case.name for case in cases] for cases in few.values()] == [["gpu_124m_8192"]] * 3


def test_sizes_of_a_gpu_need_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "gpu_names", list)
    with pytest.raises(UsageError, match=r"^--models and --seq-lengths need a CUDA device, but there is none"):
        MODULE.kernels(Settings(models=("124m",)))
