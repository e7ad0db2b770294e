"""What a rank says when the host refuses it memory."""

from __future__ import annotations

import pytest
import torch

from trainer.app import _in_our_words
from trainer.errors import OutOfMemoryError
from trainer.machine import MemoryLimit


def refused() -> BaseException:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 58, dtype=torch.uint8)
    return raised.value


def test_a_refused_allocation_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.app.memory_limit", lambda: None)
    told = _in_our_words(refused())
    assert isinstance(told, OutOfMemoryError)
    assert str(told).startswith(
        "the model must fit into host memory, but: can't allocate memory: you tried to allocate"
    )
    assert "\n" not in str(told)


def test_the_limit_of_a_container_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.app.memory_limit", lambda: MemoryLimit(2 << 30, 1 << 30))
    told = str(_in_our_words(MemoryError()))
    assert told == (
        "the model must fit into host memory, of which this container or job may have 2 GiB, but: an allocation failed"
    )


def test_other_errors_stay_as_they_are() -> None:
    error = RuntimeError("shapes do not match")
    assert _in_our_words(error) is error
