"""Rules of transformers about sizes: that of a head, and what must divide what."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.errors import ConfigError
from trainer.families.fields import Values, head_dim_of


@dataclass(frozen=True)
class HeadDim:
    """The size of a head where transformers' class does not declare it, but its model reads it if it is there."""

    is_free: bool = True
    """True if the model computes with another size than hidden_size / num_attention_heads; otherwise it is refused."""

    @property
    def defaults(self) -> Values:
        """Their key."""
        return {"head_dim": None}

    def read(self, theirs: Values) -> Values:
        """Return our key, unless it is the usual size."""
        size, usual = theirs["head_dim"], head_dim_of({**theirs, "head_dim": None})
        if size in (None, usual):
            return {}
        if not self.is_free:
            raise ConfigError(
                f"head_dim must be hidden_size / num_attention_heads ({usual}), since transformers' model has no "
                f"option for another, but is {size}"
            )
        return {"head_dim": size}

    def write(self, ours: Values) -> Values:
        """Return their key; a null would not be read as the usual size."""
        size = head_dim_of(ours)
        return {} if not self.is_free or size == head_dim_of({**ours, "head_dim": None}) else {"head_dim": size}


@dataclass(frozen=True)
class Divisible:
    """A rule of transformers' class, which refuses a size that another one does not divide."""

    theirs: str = "hidden_size"
    by: str = "num_attention_heads"

    @property
    def defaults(self) -> Values:
        """No key: both have entries of their own."""
        return {}

    def read(self, theirs: Values) -> Values:
        """Return no key of ours, or refuse."""
        size, parts = theirs[self.theirs], theirs[self.by]
        if isinstance(size, int) and isinstance(parts, int) and (parts == 0 or size % parts):
            raise ConfigError(f"{self.theirs} ({size}) must be divisible by {self.by} ({parts})")
        return {}

    def write(self, ours: Values) -> Values:
        """Return no key."""
        return {}
