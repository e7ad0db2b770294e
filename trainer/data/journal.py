"""A run's journal of what it read: a line for each start, and for each return to a checkpoint. No torch.

Between two lines a run reads on from step to step, so the lines are enough to say what any step read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.config.batch_sizes import BatchSizes
from trainer.data.stream_plan import StreamPlan
from trainer.errors import CheckpointError
from trainer.files import append_line

_MOST = 1 << 53
"""More than any count of a run: a larger one is damage."""


@dataclass(frozen=True)
class Stretch:
    """Steps that a run read one after the other."""

    step: int
    """The first of them."""
    position: int
    """Place in the stream at which it begins, in tokens."""
    ledger: str
    """Rolling hash before it."""
    seq_length: int
    """Tokens of a sequence."""
    sample_length: int
    """Tokens of a sample, the unit in which the stream is shuffled."""
    stream: str
    """Identity of the stream."""
    sizes: BatchSizes
    """Sequences of the global batch of each step."""
    segments: tuple[Mapping[str, Any], ...] = ()
    """Plan of the stream of a run whose data changed on the way; none where the config says all of it."""

    def position_of(self, step: int) -> int:
        """Return the place in the stream at which a step begins, in tokens."""
        return self.position + (self.sizes.sequences(step - 1) - self.sizes.sequences(self.step - 1)) * self.seq_length


def append_stretch(path: Path, stretch: Stretch) -> None:
    """Append a line. The rest of one that was cut off by a kill stays a line of its own.

    Raises:
        StorageError: the disk is full, read-only, or not writable by this user.
    """
    append_line(path, json.dumps(asdict(stretch)))


def read_journal(path: Path) -> list[Stretch]:
    """Return the stretches in the order in which they were begun, without lines that are not whole. No file: none.

    Raises:
        OSError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(_parsed(json.loads(line)))
        except (ValueError, KeyError, TypeError, OverflowError, CheckpointError):
            continue
    return found


def _parsed(held: Mapping[str, Any]) -> Stretch:
    sizes = held["sizes"]
    ramp = tuple((int(last), int(size)) for last, size in sizes["warmup"])
    numbers = {name: int(held[name]) for name in ("step", "position", "seq_length", "sample_length")}
    batches = (int(sizes["final"]), *(size for _, size in ramp))
    if numbers["position"] < 0 or min(*batches, *(numbers[name] for name in numbers if name != "position")) < 1:
        raise ValueError("a count is out of its range")
    if max(*batches, *numbers.values(), *(last for last, _ in ramp)) > _MOST:
        raise ValueError("a count is out of its range")
    ledger, stream = str(held["ledger"]), str(held["stream"])
    # Earlier versions did not change data on the way.
    segments = tuple(dict(one) for one in held.get("segments", ()))
    if segments:
        StreamPlan.from_list(numbers["sample_length"], segments)
    batch = BatchSizes(batches[0], ramp)
    return Stretch(ledger=ledger, stream=stream, sizes=batch, segments=segments, **numbers)
