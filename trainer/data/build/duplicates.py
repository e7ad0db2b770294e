"""Documents with the same text as an earlier one, found in bounded memory by buckets on the disk. No torch."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.build.encoder import HASH_BYTES

BUCKETS = 256
"""Files by the first byte of the hash: each is sorted in memory on its own."""
_ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("document", "<u8")])


class Duplicates:
    """The documents that are copies.

    A document that runs over several units has a hash in each; its own is the hash of those.

    Args:
        folder: an existing folder for the buckets.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = ExitStack()
        self._buckets = [self._files.enter_context((folder / f"bucket{i:03d}").open("w+b")) for i in range(BUCKETS)]
        self._documents = 0
        self._long: tuple[int, bytes] | None = None
        self._copies: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)

    def add(self, documents: npt.NDArray[np.int64], hashes: npt.NDArray[np.uint8], is_open: bool) -> None:
        """Note the documents of a unit, in order.

        Args:
            documents: number of each; that of one that goes on from the unit before is the one there.
            hashes: hash of each, shape (documents, 16).
            is_open: the last one goes on in the next unit.
        """
        if self._long is not None and (len(documents) == 0 or documents[0] != self._long[0]):
            self._close_long()
        first, end = 0, len(documents)
        if self._long is not None and end:
            self._long = (self._long[0], self._long[1] + hashes[0].tobytes())
            first = 1
            if not (end == 1 and is_open):
                self._close_long()
        if end > first and is_open:
            self._long = (int(documents[-1]), hashes[-1].tobytes())
            end -= 1
        self._put(documents[first:end], hashes[first:end])
        self._documents = max(self._documents, int(documents.max(initial=0)))

    def finish(self) -> None:
        """Find the copies, once all documents are noted."""
        if self._long is not None:
            self._close_long()
        path = self._folder / "copies"
        path.write_bytes(b"")
        with path.open("r+b") as file:
            file.truncate(self._documents + 1)
        copies: Any = np.memmap(path, np.bool_, "r+")
        with self._files:
            for bucket in self._buckets:
                bucket.seek(0)
                held = np.frombuffer(bucket.read(), _ENTRY)
                order = np.lexsort((held["document"], held["low"], held["high"]))
                held = held[order]
                same = (held["high"][1:] == held["high"][:-1]) & (held["low"][1:] == held["low"][:-1])
                copies[held["document"][1:][same]] = True
        self._copies = copies

    def are_copies(self, documents: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which of some documents are copies of earlier ones."""
        return np.asarray(self._copies[documents])

    def _close_long(self) -> None:
        assert self._long is not None, "it was begun"
        number, content = self._long
        digest = hashlib.blake2b(content, digest_size=HASH_BYTES).digest() if len(content) > HASH_BYTES else content
        self._put(np.array([number]), np.frombuffer(digest, np.uint8).reshape(1, HASH_BYTES))
        self._long = None

    def _put(self, documents: npt.NDArray[np.int64], hashes: npt.NDArray[np.uint8]) -> None:
        if len(documents) == 0:
            return
        entries = np.empty(len(documents), _ENTRY)
        words = np.ascontiguousarray(hashes).view("<u8")
        entries["high"], entries["low"], entries["document"] = words[:, 0], words[:, 1], documents
        order = np.argsort(hashes[:, 0], kind="stable")
        bounds = np.searchsorted(hashes[order, 0], np.arange(BUCKETS + 1))
        for bucket in np.unique(hashes[:, 0]).tolist():
            self._buckets[bucket].write(entries[order[bounds[bucket] : bounds[bucket + 1]]].tobytes())
