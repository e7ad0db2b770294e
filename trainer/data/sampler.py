"""The order in which a run reads its samples: a pure function of the seed, whatever the layout and the batch size.

Place p of the order (p = 0, 1, ...) belongs to epoch p // N and holds sample permutation_epoch(p % N). The permutation
is a keyed Feistel network over the next power of four, walked until it lands inside [0, N): no table, so a rank among
thousands holds nothing. Source: Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002. No torch.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

_ROUNDS = 6
Words = npt.NDArray[np.uint64]


def _mix(words: Words, key: np.uint64) -> Words:
    """Mix 64-bit words: the finaliser of SplitMix64."""
    words = words ^ key
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class SampleOrder:
    """The order in which a run reads its samples.

    Args:
        num_samples: number of samples in the data set, at least 1.
        seed: the run's seed; with more behind it for another order of the same run.
    """

    def __init__(self, num_samples: int, seed: int | str) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, but is {num_samples}")
        self.num_samples = num_samples
        self._seed = seed
        # Two equal halves of bits: the domain is the smallest power of four that holds all samples.
        self._half = np.uint64(max(1, ((num_samples - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)

    def samples(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """Return the samples at places `first` to `first + count - 1`, `[count]`."""
        if first < 0:
            raise ValueError(f"places are counted from 0, but first is {first}")
        return self.at(np.arange(first, first + count, dtype=np.int64))

    def at(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the samples at places, `[n]`."""
        epochs, offsets = np.divmod(places, self.num_samples)
        samples = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            samples[here] = self.permuted(offsets[here], int(epoch))
        return samples

    def permuted(self, offsets: npt.NDArray[np.int64], epoch: int) -> npt.NDArray[np.int64]:
        """Return the place to which the epoch's permutation sends each offset in [0, num_samples)."""
        keys = self._keys(epoch)
        words = self._encrypt(offsets.astype(np.uint64), keys)
        outside = words >= self.num_samples
        while outside.any():
            words[outside] = self._encrypt(words[outside], keys)
            outside = words >= self.num_samples
        return words.astype(np.int64)

    def _keys(self, epoch: int) -> list[np.uint64]:
        digest = hashlib.blake2b(f"{self._seed}:{epoch}".encode(), digest_size=8 * _ROUNDS).digest()
        return [np.uint64(key) for key in np.frombuffer(digest, dtype="<u8")]

    def _encrypt(self, words: Words, keys: list[np.uint64]) -> Words:
        left, right = words >> self._half, words & self._mask
        for key in keys:
            left, right = right, left ^ (_mix(right, key) & self._mask)
        return (left << self._half) | right
