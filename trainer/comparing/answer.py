"""The answer of a comparison in a few sentences: where two runs part, and what may be the cause."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from trainer.comparing.differing import LEDGER, Cost, Parting
from trainer.config.keys import joined

if TYPE_CHECKING:
    from trainer.comparing.two_records import TwoRecords

LOSS, RATE = "train/loss", "train/learning_rate"
_NOTICEABLE = 0.05
"""Relative change of a step's cost from which on it is worth a sentence: less comes and goes by itself."""
_MOST_CAUSES = 6


def answer(found: TwoRecords) -> Iterator[str]:
    """Yield the sentences, each a line."""
    yield from _on_results(found)
    yield from _on_loss(found.results)
    yield from _on_costs(found.costs)


def _on_results(found: TwoRecords) -> Iterator[str]:
    results = [one for one in found.results if one.name != LEDGER]
    if not results:
        yield "The runs cannot be held against each other: no step was logged by both."
        return
    steps = max(one.common for one in results)
    far = [one for one in results if one.beyond is not None]
    near = sorted((one for one in results if one.first is not None), key=lambda one: one.first or 0)
    if not near:
        yield f"All results are the same to the last bit in all {steps:,} steps that both have logged."
        return
    if not far:
        worst = max(results, key=lambda one: one.largest)
        yield (
            f"The runs agree to within {worst.largest:.1g} ({worst.name}) in all {steps:,} steps that both have "
            f"logged; the first bit that differs is of {near[0].name} at step {near[0].first:,}."
        )
        yield from _causes(found, near[0].first or 0, "Rounding may differ because")
        return
    step = far[0].beyond or 0
    names = [one.name for one in far if one.beyond == step]
    yield f"The runs part at step {step:,}: {joined(names[:4], 'and')}{' and more' if len(names) > 4 else ''}."
    before = [one for one in near if (one.first or 0) < step]
    if before:
        yield f"Bits differ before that: of {before[0].name} from step {before[0].first:,} on."
    yield from _causes(found, step, "What may be the cause:")


def _causes(found: TwoRecords, step: int, beginning: str) -> Iterator[str]:
    """Yield what differs at a step or before it, the likeliest cause first."""
    causes = [*_of_samples(found, step), *_of_rate(found.results, step)]
    causes += [
        f"only {side} {event.text}, at step {event.step:,}"
        for side, event in found.events
        if event.step is not None and event.step <= step and event.kind != "start"
    ]
    same_data = found.samples.last >= step and found.samples.first_difference is None
    causes += [
        f"{one.key} differs"
        for one in found.settings
        if one.decides and not (same_data and one.key.startswith(("data.", "tokenizer.")))
    ]
    # The config has said already that the layout is another one.
    has_layout = any(one.key.startswith("layout.") for one in found.settings)
    causes += [
        f"{one.key} is {one.a} and {one.b}"
        for one in found.environment
        if not (has_layout and one.key.endswith((" parallel size", "world size")))
    ]
    if not causes:
        yield (
            "Nothing in config, versions, samples and events explains it: it is the machine, or arithmetic whose order "
            "is not fixed."
        )
        return
    yield beginning
    yield from (f"- {cause}" for cause in causes[:_MOST_CAUSES])
    if len(causes) > _MOST_CAUSES:
        yield f"- and {len(causes) - _MOST_CAUSES} more, which are listed above"


def _of_samples(found: TwoRecords, step: int) -> Iterator[str]:
    samples = found.samples
    if samples.first_difference is not None and samples.first_difference <= step:
        reason = f": {samples.reasons[0]}" if samples.reasons else ""
        at_latest = "" if samples.is_exact else "at the latest "
        yield f"they read other samples {at_latest}from step {samples.first_difference:,} on{reason}"


def _of_rate(results: Sequence[Parting], step: int) -> Iterator[str]:
    rate = next((one for one in results if one.name == RATE), None)
    if rate is not None and rate.beyond is not None and rate.beyond <= step:
        yield f"the learning rate differs from step {rate.beyond:,} on: {rate.a:.3g} and {rate.b:.3g}"


def _on_loss(results: Sequence[Parting]) -> Iterator[str]:
    loss = next((one for one in results if one.name == LOSS), None)
    if loss is None or loss.first is None or not math.isfinite(loss.last_a) or not math.isfinite(loss.last_b):
        return
    change = loss.last_b - loss.last_a
    if change:
        yield (
            f"At step {loss.last:,}, the last that both have logged, the loss of B is {loss.last_b:.4f}, "
            f"{abs(change):.4g} {'above' if change > 0 else 'below'} that of A."
        )


def _on_costs(found: Sequence[Cost]) -> Iterator[str]:
    by_name = {one.name: one for one in found}
    speed, wait = by_name.get("perf/tokens_per_second"), by_name.get("time/data_wait_ms")
    if speed is None or not abs(speed.change) >= _NOTICEABLE:
        return
    slower = speed.change < 0
    line = f"B is {abs(speed.change):.0%} {'slower' if slower else 'faster'}: {speed.b:.4g} tokens/s, A {speed.a:.4g}"
    step = by_name.get("time/step_ms")
    if wait is not None and step is not None and abs(wait.b - wait.a) >= abs(step.b - step.a) / 2:
        line += f"; its steps wait {wait.b:.3g} ms for data, those of A {wait.a:.3g} ms"
    yield f"{line}."
