"""Rules about blends: sources with weights, and weights that change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from string import ascii_lowercase

from trainer.config import rules_ranges
from trainer.config.blend_sources import READY_MADE, source_configs
from trainer.config.keys import did_you_mean, joined
from trainer.config.rules_common import Case, Rule
from trainer.config.rules_training import (
    data_source,
    documents,
    own_validation,
    token_files,
    tokenising,
    vocabulary_of_ids,
)
from trainer.config.schema import TokenizerKind

_KEY = re.compile(r"\bdata\.\w+")
_OF_ONE_SOURCE = ("files", "validation_files", "hub_path", "hub_name", "max_documents", "max_samples")
"""Keys below `data` that belong to a source, and to `data` itself only where it is the only one."""
_OF_EACH_SOURCE: tuple[Rule, ...] = (data_source, documents, own_validation, token_files, vocabulary_of_ids)


def blend(case: Case) -> Iterator[str]:
    """Weights of a blend are not all 0, each source is complete, and keys of one source are not given for all."""
    data = case.config.data
    if not data.blend.sources:
        if data.blend_schedule:
            yield "data.blend_schedule changes the weights of data.blend, which has no source; give it some"
        return
    if not any(data.blend.weights):
        yield "data.blend must have a weight above 0, but all are 0"
    for leaf in _OF_ONE_SOURCE:
        if getattr(data, leaf) not in (None, ()):
            yield f"data.{leaf} has no effect with data.blend, whose sources have keys of their own; move it there"
    configs = source_configs(case.config)
    ids = [name for name, config in configs.items() if config.data.source in READY_MADE]
    if case.config.tokenizer.kind is TokenizerKind.bpe and 0 < len(ids) < len(configs):
        yield (
            f"tokenizer.kind=bpe would train a tokenizer on texts, but of data.blend {joined(ids, 'and')} "
            f"hold{'s' * (len(ids) == 1)} ids already; use tokenizer=pretrained with the tokenizer that made them"
        )
    for one in data.blend.sources:
        own = replace(case, config=configs[one.name])
        found = [problem for rule in _OF_EACH_SOURCE for problem in rule(own)]
        ranges = (problem for rule in rules_ranges.RULES for problem in rule(own))
        keys = {f"data.{key}" for key, _ in one.keys}
        # What a source has from `data` may be meant for others.
        of_keys = (*ranges, *tokenising(own))
        found += [problem for problem in of_keys if keys & (set(_KEY.findall(problem)) - {"data.source"})]
        for problem in found:
            yield problem.replace("data.", f"data.blend.{one.name}.").replace("data=", f"data.blend.{one.name}.source=")


def blend_schedule(case: Case) -> Iterator[str]:
    """A schedule names sources of the blend, at places that rise, and leaves something to read at each."""
    data, before = case.config.data, 0
    if not data.blend.sources:
        return
    for index, phase in enumerate(data.blend_schedule):
        key = f"data.blend_schedule[{index}]"
        if phase.at_tokens <= before:
            yield f"{key}.at_tokens ({phase.at_tokens}) must be greater than {before}, where the weights before begin"
        before = max(before, phase.at_tokens)
        for name, _ in phase.weights:
            if name not in data.blend.names:
                yield (
                    f"{key}.weights must name sources of data.blend ({', '.join(data.blend.names)}), but names "
                    f"{name}{did_you_mean(name, data.blend.names)}"
                )
        missing = [name for name in data.blend.names if name not in dict(phase.weights)]
        if missing:
            yield f"{key}.weights must name every source of data.blend; give {', '.join(missing)} a weight, or 0"
        elif not any(weight for _, weight in phase.weights):
            yield f"{key}.weights must have a weight above 0, but all are 0"


def weights_among_files(case: Case) -> Iterator[str]:
    """Weights stand in a blend and not among paths, where other trainers take them."""
    files = case.config.data.files
    if len(files) < 2 or not all(_is_number(one) for one in files[::2]) or any(_is_number(one) for one in files[1::2]):
        return
    pairs = zip(files[::2], files[1::2], strict=False)
    blend = ", ".join(
        f"{name}: {{weight: {weight}, files: [{path}]}}"
        for name, (weight, path) in zip(ascii_lowercase, pairs, strict=False)
    )
    yield f"data.files must hold paths and no weights; write data.blend={{{blend}}}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


RULES: tuple[Rule, ...] = (blend, blend_schedule, weights_among_files)
