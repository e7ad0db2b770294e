from __future__ import annotations

import pytest
import torch

from trainer.topology import huge_pages
from trainer.topology.huge_pages import HUGE_PAGE, MADV_HUGEPAGE, in_huge_pages


def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    found: list[tuple[int, int, int]] = []
    monkeypatch.setattr(huge_pages, "_madvise", lambda: lambda *call: found.append(call))
    return found


def test_whole_pages_of_a_large_tensor_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(monkeypatch)
    tensor = torch.empty(3 * HUGE_PAGE // 4)
    assert in_huge_pages(tensor) is tensor
    ((start, size, advice),) = found
    assert advice == MADV_HUGEPAGE
    assert start % HUGE_PAGE == 0
    assert 0 <= start - tensor.data_ptr() < HUGE_PAGE
    assert start + size == tensor.data_ptr() + 3 * HUGE_PAGE


def test_small_tensors_and_other_devices_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(monkeypatch)
    in_huge_pages(torch.empty(HUGE_PAGE // 4))
    in_huge_pages(torch.empty(3 * HUGE_PAGE, device="meta"))
    assert found == []


def test_a_system_that_knows_none_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_madvise", lambda: None)
    assert len(in_huge_pages(torch.empty(HUGE_PAGE))) == HUGE_PAGE


def test_what_is_written_is_read() -> None:
    tensor = in_huge_pages(torch.empty(3 * HUGE_PAGE // 4))
    tensor.fill_(2.0)
    assert float(tensor.sum()) == 2.0 * len(tensor)
