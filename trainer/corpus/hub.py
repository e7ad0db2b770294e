"""Data sets that the `datasets` library reads: streamed by name, or saved in a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import Any

from trainer.config.schema import DataConfig
from trainer.corpus.document import Origin
from trainer.corpus.hub_split import sliced_parts
from trainer.corpus.inputs import hub_folder
from trainer.corpus.record_text import Row
from trainer.corpus.wording import listed, reason
from trainer.errors import DataError

_SAVED_MARKS = ("state.json", "dataset_dict.json")


def hub_rows(data: DataConfig) -> Iterator[Row]:
    """Yield the rows of the data set that `data.hub_path` names.

    Raises:
        DataError: it cannot be found, or reading breaks off: there is no other record to go on with.
    """
    path = str(data.hub_path)
    try:
        for number, row in enumerate(_rows(data), start=1):
            yield Row(Origin("row", number, f"data.hub_path={path}"), row)
    except DataError:
        raise
    # The library raises whatever its transport raises.
    except Exception as error:
        raise DataError(
            f"data.hub_path={path} must be a data set that can be read, but: {type(error).__name__}: {reason(error)}",
            hints=["check the name and the network, or save it with save_to_disk and give the folder as data.hub_path"],
        ) from error


def _rows(data: DataConfig) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data set, or of the parts of it that `data.hub_split` names."""
    parts = sliced_parts(data.hub_split)
    if not parts:
        yield from _split_rows(data, data.hub_split)
    for part in parts:
        first, last = part.rows(lambda part=part: _count(data, part.split))  # type: ignore[misc]
        yield from islice(_split_rows(data, part.split), first, last)


def _split_rows(data: DataConfig, split: str) -> Iterable[dict[str, Any]]:
    """Open a split; a data set that `save_to_disk` wrote without splits has only itself."""
    import datasets

    folder = hub_folder(data)
    if folder is not None and data.hub_download:
        raise DataError(
            f"data.hub_download=true has no effect where data.hub_path is a folder, as {folder}; leave it out"
        )
    if folder is None or not any((folder / mark).exists() for mark in _SAVED_MARKS):
        path = str(folder or data.hub_path)
        is_streamed = not data.hub_download
        opened: Iterable[dict[str, Any]] = datasets.load_dataset(
            path, data.hub_name, split=split, streaming=is_streamed
        )
        return opened
    rows = datasets.load_from_disk(str(folder))
    if isinstance(rows, datasets.DatasetDict):
        if split not in rows:
            raise DataError(f"data.hub_split must be one of {listed(rows)}, but is {split}")
        rows = rows[split]
    chosen: Iterable[dict[str, Any]] = rows
    return chosen


def _count(data: DataConfig, split: str) -> int:
    """Return the number of rows of a split: from the data set's description, or counted if it lies on this machine."""
    rows = _split_rows(data, split)
    if isinstance(rows, Sized):
        return len(rows)
    told = getattr(getattr(rows, "info", None), "splits", None) or {}
    if split in told and told[split].num_examples:
        return int(told[split].num_examples)
    if hub_folder(data) is None:
        raise DataError(
            f"data.hub_split={data.hub_split} needs the number of rows of {split}, which {data.hub_path} does not "
            f"tell; count in rows ({split}[:1000]), or set data.max_documents"
        )
    return sum(1 for _ in rows)
