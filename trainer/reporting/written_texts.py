"""Texts that a model wrote while it trained: the first, one from the middle, the last, and all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainer.metrics.sink import Sample
from trainer.reporting.thinning import evenly

MOST_TEXTS, MOST_PROMPTS, MOST_CHARACTERS = 24, 8, 4000
"""Texts of one prompt on a page, prompts, and characters of a text."""


@dataclass(frozen=True)
class Shown:
    """A text as the page shows it."""

    step: int
    text: str
    is_cut: bool


@dataclass(frozen=True)
class Written:
    """All texts that continue one prompt."""

    prompt: str
    count: int
    """Texts that there are."""
    few: list[Shown]
    """The first, one from the middle and the last."""
    all: list[Shown]
    """Evenly spaced, at most `MOST_TEXTS`."""


def written(samples: Sequence[Sample]) -> tuple[list[Written], list[str]]:
    """Return the texts by prompt, and a sentence about prompts that were left out."""
    prompts = list(dict.fromkeys(sample.prompt for sample in samples))
    notes = []
    if len(prompts) > MOST_PROMPTS:
        notes.append(f"The texts of {MOST_PROMPTS} of {len(prompts)} prompts are shown.")
    return [_of_prompt(prompt, samples) for prompt in prompts[:MOST_PROMPTS]], notes


def _of_prompt(prompt: str, samples: Sequence[Sample]) -> Written:
    texts = [sample for sample in samples if sample.prompt == prompt]
    # One of each step, so that what changes between them is the model.
    firsts = list({sample.step: sample for sample in reversed(texts)}.values())[::-1]
    few = [firsts[place] for place in evenly(len(firsts), 3)]
    return Written(
        prompt, len(texts), list(_shown(few)), list(_shown([texts[place] for place in evenly(len(texts), MOST_TEXTS)]))
    )


def _shown(samples: Sequence[Sample]) -> Iterator[Shown]:
    for sample in samples:
        yield Shown(sample.step, sample.text[:MOST_CHARACTERS], len(sample.text) > MOST_CHARACTERS)
