"""What the tests of the corpus room share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainer.config.schema import DataConfig
from trainer.corpus.cutting import cut
from trainer.corpus.document import BadRecord, EmptyRecord
from trainer.corpus.inputs import input_files
from trainer.corpus.read import read_unit
from trainer.corpus.units import UNIT_FILES, InputFile, Unit


def texts_of(data: DataConfig, files: Sequence[InputFile], units: Sequence[Unit]) -> Iterator[str]:
    """Yield the documents of some units in order, each put together from its parts."""
    held: list[str] = []
    is_open = False
    for unit in units:
        for document in read_unit(data, files, unit):
            if isinstance(document, EmptyRecord):
                assert not is_open, "what goes on is not empty"
                continue
            assert not isinstance(document, BadRecord), document
            assert document.continues == is_open, "a part follows the one before it, and nothing else does"
            held.append("".join(document.chunks))
            is_open = document.is_open
            if not is_open:
                yield "".join(held)
                held = []
    assert not is_open, "the last document ends"


def cut_texts(data: DataConfig, unit_bytes: int | None, unit_files: int = UNIT_FILES) -> list[str]:
    """Return the documents of a source that is cut into units of some size."""
    files = input_files(data)
    units = list(cut(files, unit_bytes, unit_files))
    assert [unit.number for unit in units] == list(range(len(units)))
    return list(texts_of(data, files, units))
