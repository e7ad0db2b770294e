from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.utils import get_rolling_token_windows

from trainer.evaluation.windows import Window, rolling_windows

PREFIX = 1000


def test_a_document_in_windows() -> None:
    found = list(rolling_windows(range(10), PREFIX, 4, 4))
    assert found == [
        Window((PREFIX, 0, 1, 2), (0, 1, 2, 3)),
        Window((3, 4, 5, 6), (4, 5, 6, 7)),
        Window((5, 6, 7, 8), (8, 9)),
    ]
    assert list(rolling_windows(range(6), PREFIX, 4, 1))[1:] == [
        Window((0, 1, 2, 3), (4,)),
        Window((1, 2, 3, 4), (5,)),
    ]
    assert list(rolling_windows([7], PREFIX, 4, 4)) == [Window((PREFIX,), (7,))]
    assert list(rolling_windows([], PREFIX, 4, 4)) == []


@given(length=st.integers(0, 40), seq_length=st.integers(1, 12), back=st.integers(0, 11))
def test_windows_are_those_of_the_harness_and_each_token_is_predicted_once(
    length: int, seq_length: int, back: int
) -> None:
    stride = max(1, seq_length - back)
    tokens = list(range(length))
    found = list(rolling_windows(tokens, PREFIX, seq_length, stride))
    theirs = get_rolling_token_windows(tokens, PREFIX, seq_length, seq_length - stride + 1)
    assert [(list(one.inputs), list(one.targets)) for one in found] == [(list(a), list(b)) for a, b in theirs]
    assert [token for one in found for token in one.targets] == tokens
    for one in found:
        ids = [PREFIX, *tokens]
        end = ids.index(one.targets[-1])
        assert tuple(ids[end - len(one.inputs) : end]) == one.inputs, "what stands before them in the document"


def test_a_token_is_predicted_from_at_least_as_much_with_a_smaller_stride() -> None:
    def read_before(stride: int) -> list[int]:
        return [
            len(one.inputs) - len(one.targets) + 1 + step
            for one in rolling_windows(range(30), PREFIX, 8, stride)
            for step in range(len(one.targets))
        ]

    assert all(a >= b for a, b in zip(read_before(2), read_before(8), strict=True))
    assert read_before(1)[8:] == [8] * 22
    assert pytest.approx(sum(read_before(8)) / 30) != 8
