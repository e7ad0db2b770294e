"""The rolling hash of every token that a run trained on, by which it can be proven what these were. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.data.picks import Rows


def ledger_after(previous: str, position: int, rows: Rows, changes: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the rolling hash after a global batch: of the hash before it, the batch's position, and its token ids.

    Where data or weights change inside it, the hash is also of how they go on.

    Args:
        previous: hash before it; empty at the beginning of a run.
        position: place of the batch in the stream, in tokens.
        rows: its sequences, with all their tokens.
        changes: plans, as plain values, that begin in it.
    """
    digest = hashlib.blake2b(f"{previous}:{position}:".encode(), digest_size=16)
    # A sequence at a time: its inputs, then its labels, then the numbers of its documents if it has several.
    numbers = None if rows.begins is None else rows.begins.cumsum(axis=-1) - 1
    hashed = [each for each in (rows.ids, rows.labels, numbers) if each is not None]
    digest.update(np.stack(hashed, axis=1).astype("<u4").tobytes())
    for change in changes:
        digest.update(json.dumps(change, sort_keys=True).encode())
    return digest.hexdigest()


def short_ledger(ledger: str) -> int:
    """Return the first 48 bits of a hash in hexadecimal digits: a number that every metrics sink can hold exactly."""
    return int(ledger[:12], 16)
