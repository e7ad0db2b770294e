"""Rules about the warm-up of the batch size: sizes that grow, each a whole number of micro-batches on every replica."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from trainer.config.batch_sizes import batch_sizes
from trainer.config.pipeline_schedules import SCHEDULES
from trainer.config.rules_common import Case, Rule


def parts(case: Case) -> Iterator[str]:
    """Each size has its end, in steps or in tokens, and both grow."""
    batch = case.config.batch
    sizes, steps, tokens = batch.rampup_sizes, batch.rampup_steps, batch.rampup_tokens
    if steps and tokens:
        yield "batch.rampup_steps and batch.rampup_tokens both say when the batch grows; leave one of them out"
        return
    key, ends = ("rampup_tokens", tokens) if tokens else ("rampup_steps", steps)
    if not sizes and not ends:
        return
    if len(sizes) != len(ends):
        yield (
            f"batch.{key} must hold an end for each of batch.rampup_sizes ({len(sizes)}), but holds {len(ends)}; "
            "give each size one"
        )
        return
    if any(left >= right for left, right in pairwise((0, *ends))):
        yield f"batch.{key} must be above 0 and grow, but is {list(ends)}"
    elif any(left >= right for left, right in pairwise((0, *sizes, batch.global_batch_size))):
        yield (
            f"batch.rampup_sizes must grow up to batch.global_batch_size ({batch.global_batch_size}), but is "
            f"{list(sizes)}"
        )
    else:
        yield from _reached(case)


def _reached(case: Case) -> Iterator[str]:
    config = case.config
    if min(config.model.seq_length, config.train.steps) < 1:
        return  # reported by `minima`
    last = batch_sizes(config.batch, config.model.seq_length).warmup[-1][0]
    if last >= case.steps:
        yield (
            f"the warm-up of the batch must end before train.steps ({config.train.steps}), but takes {last} steps; "
            "use a shorter one, or a smaller batch.global_batch_size"
        )


def micro_batches(case: Case) -> Iterator[str]:
    """Every size is a whole number of micro-batches on every replica, and enough of them for the schedule."""
    batch, layout, dp = case.config.batch, case.config.layout, case.dp
    unit, pp = batch.micro_batch_size * dp, layout.pipeline_parallel_size
    if batch.global_batch_size % unit:
        return  # reported by `batch_over_ranks`
    fewest = SCHEDULES[layout.pipeline_schedule].fewest_micro_batches(pp)
    for size in batch.rampup_sizes:
        if size % unit:
            yield (
                f"batch.rampup_sizes must be divisible by batch.micro_batch_size ({batch.micro_batch_size}) x "
                f"layout.data_parallel_size ({dp}) = {unit}, but has {size}"
            )
        elif 0 < size < fewest * unit:
            yield (
                f"batch.rampup_sizes must hold at least {fewest} micro-batches ({fewest * unit} sequences) for "
                f"layout.pipeline_schedule={layout.pipeline_schedule.value}, but has {size}"
            )


RULES: tuple[Rule, ...] = (parts,)
ARITHMETIC: tuple[Rule, ...] = (micro_batches,)
