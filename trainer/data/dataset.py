"""Fixed-length samples out of a memory-mapped stream of tokens. No torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt


class TokenDataset:
    """Sample i holds tokens [i * S, (i + 1) * S]: S inputs and, one further, S labels, so each token is predicted once.

    Args:
        path: file of little-endian token ids.
        dtype: of the file, uint16 or uint32.
        seq_length: S.
        max_samples: use only this many samples from the start.
    """

    def __init__(self, path: Path, dtype: str, seq_length: int, max_samples: int | None = None) -> None:
        self.seq_length = seq_length
        # numpy cannot map an empty file.
        empty = path.stat().st_size == 0
        self._tokens = np.empty(0, dtype=dtype) if empty else np.memmap(path, dtype=dtype, mode="r")
        available = max(0, (len(self._tokens) - 1) // seq_length)
        self._length = available if max_samples is None else min(available, max_samples)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._length

    def sample(self, index: int) -> npt.NDArray[np.int64]:
        """Return the tokens of a sample, [seq_length + 1].

        Raises:
            IndexError: there is no such sample.
        """
        if not 0 <= index < self._length:
            raise IndexError(f"sample must be in [0, {self._length}), but is {index}")
        start = index * self.seq_length
        return np.asarray(self._tokens[start : start + self.seq_length + 1], dtype=np.int64)
