"""The scores of a model: printed, written as JSON, and handed to TensorBoard and wandb."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config.places import absolute_path
from trainer.config.written import plain
from trainer.evaluation.asked import AskedData, Evaluation, asks_for_wandb
from trainer.evaluation.documents import DocumentScores, MeanLoss, mean_of
from trainer.evaluation.task_results import kept_results, numbers_of, table
from trainer.files import write_atomically
from trainer.log import say
from trainer.metrics.scores import log_scores
from trainer.versions import versions


@dataclass(frozen=True)
class Scores:
    """Scores of a model."""

    data: tuple[AskedData, ...]
    documents: tuple[DocumentScores, ...]
    """The loss on each of the data."""
    tasks: Mapping[str, Any] | None
    """Results of the harness."""

    @property
    def mean(self) -> MeanLoss | None:
        """The loss on the documents, of a blend by the weights of its sources; None if there are none."""
        if not self.documents:
            return None
        return mean_of([one.mean for one in self.documents], [one.weight for one in self.data])

    def numbers(self) -> dict[str, float]:
        """Return name -> value, as metrics have them: `eval/loss`, `eval/loss/<source>`, `eval/<task>/<metric>`."""
        found = {} if self.mean is None else self.mean.numbers()
        for data, scores in zip(self.data, self.documents, strict=True):
            if data.source:
                found |= {f"{name}/{data.source}": value for name, value in scores.mean.numbers().items()}
        found |= {} if self.tasks is None else numbers_of(self.tasks)
        return {f"eval/{name}": value for name, value in found.items() if math.isfinite(value)}


def publish(asked: Evaluation, scores: Scores) -> None:
    """Print the scores, and write and log what was asked for.

    Raises:
        StorageError: a file cannot be written.
    """
    options = asked.options
    for line in _lines(scores):
        say(line)
    if options.output:
        path = absolute_path(options.output, "output")
        write_atomically(path, json.dumps(record(asked, scores), indent=2, ensure_ascii=False) + "\n", "output")
    if options.samples and scores.tasks is not None:
        lines = (json.dumps(one, ensure_ascii=False, default=str) for one in _samples(scores.tasks))
        write_atomically(absolute_path(options.samples, "samples"), "".join(f"{one}\n" for one in lines), "samples")
    if asked.logs:
        folder = absolute_path(options.output, "output").with_suffix("")
        log_scores(
            scores.numbers(),
            asked.source.manifest.step,
            folder,
            asked.words.logging,
            {"model": str(asked.source.path), "options": _options(asked)},
            asks_for_wandb(options.settings),
        )


def record(asked: Evaluation, scores: Scores) -> dict[str, Any]:
    """Return the scores and all that decides them, as JSON holds it."""
    source = asked.source
    told: dict[str, Any] = {
        "model": str(source.path),
        "step": source.manifest.step,
        "parameters": source.plan.model.parameter_count,
        "seq_length": source.seq_length,
        "layout": source.plan.mesh.name,
        "options": _options(asked),
        "versions": versions(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "scores": scores.numbers(),
    }
    facts = [_facts(data, found) for data, found in zip(scores.data, scores.documents, strict=True)]
    if scores.mean is not None:
        is_blend = bool(scores.data[0].source)
        told["data"] = {"source": "data.blend", "sources": facts, **scores.mean.numbers()} if is_blend else facts[0]
    if scores.tasks is not None:
        told["tasks"] = kept_results(scores.tasks)
    return told


def _facts(data: AskedData, found: DocumentScores) -> dict[str, Any]:
    return {
        "source": data.name,
        **({"weight": data.weight} if data.source else {}),
        "part": data.part,
        "stride": data.stride,
        "documents": found.documents,
        "tokens": found.tokens,
        "bytes": found.num_bytes,
        **found.mean.numbers(),
    }


def _options(asked: Evaluation) -> dict[str, Any]:
    return {key: plain(value) for key, value in vars(asked.options).items()}


def _lines(scores: Scores) -> Iterator[str]:
    for data, found in zip(scores.data, scores.documents, strict=True):
        size = "" if found.num_bytes is None else f", {found.num_bytes:,} bytes"
        count = f"{found.documents:,} document{'s' * (found.documents != 1)}"
        yield f"data    {data.name}: {count}, {found.tokens:,} tokens{size}"
        yield f"        {_shown(found.mean)}"
    if scores.mean is not None and len(scores.data) > 1:
        yield "data    the mean by the weights of data.blend"
        yield f"        {_shown(scores.mean)}"
    if scores.tasks is not None:
        yield from _table(table(scores.tasks))


def _shown(mean: MeanLoss) -> str:
    bits = "" if mean.bits_per_byte is None else f", {mean.bits_per_byte:.4f} bits per byte"
    return f"loss {mean.loss:.4f} nats a token, perplexity {mean.perplexity:,.2f}{bits}"


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _samples(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for task, samples in (results.get("samples") or {}).items():
        for one in samples:
            yield {"task": task, **one}
