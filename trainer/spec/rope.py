"""Rotary embedding of queries and keys, and the scaling of its frequencies for longer texts, as data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class RopeScalingKind(Enum):
    """Scaling of the rotary frequencies, for texts that are longer than those of the first training.

    `linear` divides all of them by the factor (arXiv 2306.15595); `dynamic` raises the base as the text grows (NTK);
    `llama3` scales slow ones only (arXiv 2407.21783); `yarn` blends by wavelength (arXiv 2309.00071); `longrope` has a
    divisor for each of them (arXiv 2402.13753).
    """

    none = "none"
    linear = "linear"
    dynamic = "dynamic"
    llama3 = "llama3"
    yarn = "yarn"
    longrope = "longrope"


@dataclass(frozen=True)
class RopeScaling:
    """Scaling of the rotary frequencies; every kind reads some of these keys, and the others keep their defaults."""

    kind: RopeScalingKind = RopeScalingKind.none
    """none | linear | dynamic | llama3 | yarn | longrope."""
    factor: float = 1.0
    """Length of the texts divided by that of the first training. longrope derives attention_factor from it."""
    original_length: int | None = None
    """dynamic, llama3, yarn, longrope: tokens in a sequence of the first training. null: model.seq_length, but
    dynamic needs it."""
    low_frequency_factor: float = 1.0
    """llama3: wavelengths above original_length / low_frequency_factor are scaled."""
    high_frequency_factor: float = 4.0
    """llama3: wavelengths below original_length / high_frequency_factor are not scaled."""
    beta_fast: float = 32.0
    """yarn: frequencies that turn more often than this in original_length tokens are not scaled."""
    beta_slow: float = 1.0
    """yarn: frequencies that turn less often than this in original_length tokens are scaled by the whole factor."""
    attention_factor: float | None = None
    """yarn, longrope: factor of the rotated queries and keys. null: derived from factor."""
    mscale: float | None = None
    """yarn: with mscale_all_dim, the numerator's weight in the derived attention_factor (DeepSeek)."""
    mscale_all_dim: float | None = None
    """yarn: with mscale, the denominator's weight in the derived attention_factor (DeepSeek)."""
    truncate: bool = True
    """yarn: round the range between scaled and unscaled frequencies to whole ones."""
    short_factor: tuple[float, ...] = ()
    """longrope: divisor of each frequency in a text of at most original_length tokens."""
    long_factor: tuple[float, ...] = ()
    """longrope: divisor of each frequency in a longer text."""
    windowed: bool = True
    """Scale in layers with a sliding window too (Gemma 3, OLMo 3: false)."""

    @property
    def depends_on_length(self) -> bool:
        """True if the frequencies depend on the length of the text."""
        return self.kind in (RopeScalingKind.dynamic, RopeScalingKind.longrope)


READ_BY: dict[RopeScalingKind, tuple[str, ...]] = {
    RopeScalingKind.none: (),
    RopeScalingKind.linear: ("factor",),
    RopeScalingKind.dynamic: ("factor", "original_length"),
    RopeScalingKind.llama3: ("factor", "original_length", "low_frequency_factor", "high_frequency_factor"),
    RopeScalingKind.yarn: (
        *("factor", "original_length", "beta_fast", "beta_slow"),
        *("attention_factor", "mscale", "mscale_all_dim", "truncate"),
    ),
    RopeScalingKind.longrope: ("factor", "original_length", "attention_factor", "short_factor", "long_factor"),
}
"""Kind -> keys that it reads, besides `windowed`, which all but `none` read."""


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of queries and keys (arXiv 2104.09864), pairs half a rotation apart as in LLaMA's weights."""

    theta: float
    """Base of the frequencies."""
    dims: int
    """Number of elements at the start of each head that are rotated; the others stay as they are (GPT-NeoX, Phi)."""
    scaling: RopeScaling | None = None
    """Scaling of the frequencies, with an original_length; None: there is none."""
