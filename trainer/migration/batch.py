"""The batch of a foreign run: sequences in a step, replicas, the warm-up of the batch, and steps of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from trainer.errors import ConfigError
from trainer.migration.draft import Draft, Why
from trainer.migration.foreign import Setting, as_number, shown

GLOBAL, MICRO, REPLICAS = "batch.global_batch_size", "batch.micro_batch_size", "layout.data_parallel_size"
PIPELINE, TENSOR = "layout.pipeline_parallel_size", "layout.tensor_parallel_size"
_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_MOST_SIZES = 10_000


@dataclass(frozen=True)
class BatchNames:
    """Names of the settings of a batch in a trainer."""

    micro: tuple[str, ...]
    whole: tuple[str, ...] = ()
    """Sequences of a step over all ranks."""
    accumulation: tuple[str, ...] = ()


@dataclass(frozen=True)
class Samples:
    """Sequences of the steps of a run."""

    whole: int
    warmup: tuple[tuple[int, int], ...] = field(default=())
    """Smaller sizes of the beginning, each with the samples of the run with which it ends."""

    def steps(self, samples: float, is_run: bool = False) -> int:
        """Return the steps that read this many samples. A run leaves out a last step that is not full."""
        consumed = taken = 0
        for size, end in self.warmup:
            if consumed < min(end, samples):
                more = math.ceil((min(end, samples) - consumed) / size)
                consumed, taken = consumed + more * size, taken + more
        rest = max(0.0, samples - consumed) / self.whole
        return taken + (math.floor(rest) if is_run else math.ceil(rest))


def put_batch(draft: Draft, names: BatchNames, ranks: int | None) -> int | None:
    """Set the sizes of the batch and the replicas, and return the sequences of a step as the files say them.

    Args:
        draft: the experiment; pipeline and tensor-parallel size are in it.
        names: where the sizes are.
        ranks: GPUs of the run there, if anybody says it.

    Returns:
        the sequences; None if they depend on a number of replicas that nobody says.
    """
    said = draft.find(*names.whole) if names.whole else None
    whole = draft.integer(*names.whole) if said else 0
    accumulation = draft.integer(*names.accumulation, default=0) if names.accumulation else 0
    micro = draft.integer(*names.micro, default=0)
    replicas = _replicas(draft, ranks)
    if not micro and whole and replicas:
        # DeepSpeed derives it in this way.
        micro = max(1, whole // replicas // max(1, accumulation))
    told = (*names.whole, *names.micro, *names.accumulation)
    for name, value in ((names.whole, whole), (names.accumulation, accumulation), (names.micro, micro)):
        if value < 0 or (value == 0 and draft.find(*name) is not None):
            raise ConfigError(f"{draft.origin(*name)} must be at least 1, but is {value}")
    _put_replicas(draft, replicas, whole, micro * max(1, accumulation))
    unknown = "" if micro else "the files do not say it; it changes speed and memory only"
    micro = micro or 1
    draft.put(MICRO, micro, *(names.micro if draft.origin(*names.micro) else told), note=unknown)
    if whole:
        draft.put(GLOBAL, whole, *names.whole)
        _check_accumulation(draft, names, accumulation, whole, micro)
        return whole
    found = micro * max(1, accumulation) * (replicas or 1)
    note = (
        ""
        if replicas
        else (f"of one replica, since the files do not say how many there are: give {REPLICAS}=N behind them")
    )
    draft.put(GLOBAL, found, *names.micro, *names.accumulation, note=note)
    return found if replicas else None


def _check_accumulation(draft: Draft, names: BatchNames, accumulation: int, whole: int, micro: int) -> None:
    replicas = draft.count(REPLICAS, 0)
    if accumulation and replicas and micro * accumulation * replicas != whole:
        raise ConfigError(
            f"{draft.origin(*names.whole)} ({whole}) must be {draft.origin(*names.micro)} ({micro}) x "
            f"{draft.origin(*names.accumulation)} ({accumulation}) x {replicas} replicas"
        )


def _replicas(draft: Draft, ranks: int | None) -> int | None:
    wanted = draft.value(REPLICAS)
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        return wanted
    unit = draft.count(PIPELINE) * draft.count(TENSOR)
    return ranks // unit if ranks and unit > 0 and ranks % unit == 0 else None


def _put_replicas(draft: Draft, replicas: int | None, whole: int, unit: int) -> None:
    if replicas is None or REPLICAS in draft.entries or REPLICAS in draft.wanted:
        return
    if whole and unit and whole % (unit * replicas):
        return  # the launcher of the run here decides
    draft.put(REPLICAS, replicas, origin="ranks there / (pipeline x tensor)")


def put_rampup(draft: Draft, name: str, whole: int, seq_length: int) -> Samples:
    """Set the warm-up of the batch that Megatron describes as start, increment and samples.

    Raises:
        ConfigError: it is none.
    """
    setting = draft.find(name)
    if setting is None:
        return Samples(whole)
    items = setting.value if isinstance(setting.value, list) else str(setting.value).split()
    numbers = [_whole_number(setting, item) for item in items]
    if len(numbers) != 3:
        raise ConfigError(
            f"{setting.place}: {setting.written} must be start, increment and samples, but is {shown(setting.value)}"
        )
    start, increment, samples = numbers
    if start < 1 or increment < 1 or samples < 1 or start > whole or (whole - start) % increment:
        raise ConfigError(
            f"{setting.place}: {setting.written} must grow from its start ({start}) by its increment ({increment}) to "
            f"the global batch size ({whole})"
        )
    count = (whole - start) // increment
    if count > _MOST_SIZES:
        raise ConfigError(f"{setting.place}: {setting.written} must have at most {_MOST_SIZES} sizes, but has {count}")
    warmup = [(start + index * increment, -(-(index + 1) * samples // count)) for index in range(count)]
    return _warmup(draft, setting, warmup, whole, seq_length)


def put_size_steps(draft: Draft, name: str, whole: int, seq_length: int) -> Samples:
    """Set the warm-up of the batch that Megatron describes as `TOKENS:SIZE TOKENS:SIZE ...`.

    Raises:
        ConfigError: it is none.
    """
    setting = draft.find(name)
    if setting is None:
        return Samples(whole)
    words = setting.value if isinstance(setting.value, list) else str(setting.value).split()
    phases = []
    for word in map(str, words):
        begin, _, size = word.partition(":")
        unit = _UNITS.get(begin[-1:].upper(), 1)
        try:
            phases.append((round(float(begin.rstrip("KMBTkmbt")) * unit), int(size)))
        except (ValueError, OverflowError):
            raise ConfigError(
                f"{setting.place}: {setting.written} must be TOKENS:SIZE each, but has {word[:40]!r}"
            ) from None
    if phases[0][0] != 0 or phases[-1][1] != whole or any(size < 1 for _, size in phases):
        raise ConfigError(
            f"{setting.place}: {setting.written} must begin at 0 tokens and end with the global batch size ({whole})"
        )
    ends = [begin for begin, _ in phases[1:]]
    warmup = [(size, -(-end // seq_length)) for (_, size), end in zip(phases, ends, strict=False)]
    return _warmup(draft, setting, warmup, whole, seq_length)


def _warmup(draft: Draft, setting: Setting, warmup: Sequence[tuple[int, int]], whole: int, seq_length: int) -> Samples:
    if warmup:
        draft.put("batch.rampup_sizes", [size for size, _ in warmup], setting.name)
        draft.put("batch.rampup_tokens", [end * seq_length for _, end in warmup], setting.name)
        unit = draft.count(MICRO) * draft.count(REPLICAS)
        if REPLICAS in draft.entries and any(size % unit for size, _ in warmup):
            # The header of a script names other nodes than the run had.
            del draft.entries[REPLICAS]
    else:
        draft.drop(setting.name, Why.no_effect, "it is the global batch size from the first step on")
    return Samples(whole, tuple(warmup))


def _whole_number(setting: Setting, item: object) -> int:
    number = as_number(Setting(setting.name, item, setting.written, setting.place))
    if not math.isfinite(number) or number != int(number):
        raise ConfigError(f"{setting.place}: {setting.written} must hold integers, but has {shown(item)}")
    return int(number)
