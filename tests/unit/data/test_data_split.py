from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.held_out import is_held_out, split_document
from trainer.data.split import PART_CHARACTERS

LINES = "".join(f"line {number} of a long text\n" for number in range(20_000))


def test_the_decision_is_the_same_on_every_machine() -> None:
    assert [text for text in map(str, range(200)) if is_held_out(text, 0.02)] == ["3", "68", "137", "145", "195"]


def test_the_share_is_the_fraction() -> None:
    texts = [str(number) for number in range(20_000)]
    for fraction in (0.02, 0.3):
        assert abs(sum(is_held_out(text, fraction) for text in texts) / len(texts) - fraction) < 0.01
    assert not any(is_held_out(text, 0.0) for text in texts)


def test_a_larger_fraction_only_adds() -> None:
    texts = [str(number) for number in range(2000)]
    small, large = ({text for text in texts if is_held_out(text, fraction)} for fraction in (0.1, 0.2))
    assert small < large


def test_a_short_document_is_decided_as_a_whole() -> None:
    for text in ("x", "x" * PART_CHARACTERS, ""):
        assert list(split_document(text, 0.5)) == [(is_held_out(text, 0.5), text)]


def test_a_long_document_serves_both_sides() -> None:
    pieces = list(split_document(LINES, 0.1))
    assert "".join(text for _, text in pieces) == LINES
    assert all(text.endswith("\n") for _, text in pieces)
    held_out = sum(len(text) for is_out, text in pieces if is_out)
    assert 0.03 < held_out / len(LINES) < 0.25
    sides = [is_out for is_out, _ in pieces]
    assert all(a != b for a, b in pairwise(sides))


def test_text_that_is_added_at_the_end_changes_no_earlier_decision() -> None:
    cut = LINES.rindex("\n", 0, len(LINES) // 2)

    def sides(text: str) -> list[bool]:
        return [is_out for is_out, piece in split_document(text, 0.3) for _ in piece]

    kept = cut - PART_CHARACTERS
    assert sides(LINES)[:kept] == sides(LINES[:cut])[:kept]


@settings(deadline=None)
@given(st.text(alphabet="ab\n", max_size=50), st.integers(1, 2000), st.floats(0, 0.99))
def test_the_pieces_are_the_document(text: str, times: int, fraction: float) -> None:
    assert "".join(piece for _, piece in split_document(text * times, fraction)) == text * times
