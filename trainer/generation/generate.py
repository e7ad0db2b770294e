"""Texts from a checkpoint of any layout, written by one process or by the ranks of another layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial

from trainer.checkpoint.read_weights import weights_in
from trainer.config.places import absolute_path
from trainer.data.tokenizer import Tokenizer
from trainer.files import write_atomically
from trainer.generation.decoder import Decoder, Request
from trainer.generation.printing import InOrder
from trainer.generation.sampling import Sampling
from trainer.generation.stage import StageModel, stage_model
from trainer.generation.task import Beginning, Task
from trainer.generation.text import Ends, Text
from trainer.log import aside, write
from trainer.model.cache import cache_elements
from trainer.pipeline.partition import stages
from trainer.tensor_parallel.init import fill
from trainer.topology.groups import ParallelGroups

_FP32_BYTES = 4
_MIB = 1 << 20


def load_stage(task: Task, groups: ParallelGroups) -> StageModel:
    """Return this rank's layers of what writes, in evaluation mode, fp32, on this rank's device. No collective.

    Raises:
        CheckpointError: weights are missing or do not fit the run's config.
    """
    plan = task.plan
    read = weights_in(task.checkpoint, task.manifest, plan.model, "checkpoint")
    names = [layer.name for layer in stages(plan)[groups.place.stage].layers]
    group = groups.tensor
    model = stage_model(plan.model, plan.execution, group, names)
    # Rows beyond the vocabulary are padding of this layout; the model never chooses them.
    fill(model, lambda spec, _: read(spec, group.rank, group.size), groups.device)
    return model


def written(
    decoder: Decoder,
    beginnings: Sequence[Beginning],
    tokenizer: Tokenizer,
    ends: Ends,
    batch_size: int,
    shown: InOrder | None = None,
) -> list[Text]:
    """Return a text for each beginning, in their order. Collective over the layout.

    Args:
        decoder: writes with this rank's layers.
        beginnings: prompts and seeds; those of all ranks are the same.
        tokenizer: the model's.
        ends: what ends a text before its tokens are spent.
        batch_size: largest number of texts that are written at once.
        shown: shows them while they are written; None: nobody looks.
    """
    texts: list[Text] = []
    requests: list[Request] = []
    for index, one in enumerate(beginnings):
        on_change = None if shown is None else partial(shown.changed, index)
        texts.append(Text(tokenizer, one.prompt.text, one.ids, one.max_tokens, ends, on_change))
        requests.append(Request(one.ids, one.max_tokens, one.seed, texts[-1].take))
    decoder.write(requests, batch_size)
    return texts


def write_texts(task: Task, groups: ParallelGroups) -> list[Text]:
    """Write the texts of a task and show them as they come, on the reporting rank. Collective over the layout.

    Raises:
        CheckpointError: weights are missing or do not fit the run's config.
        StorageError: the output cannot be written.
    """
    options = task.options
    model = load_stage(task, groups)
    aside(_memory_told(task))
    shown = InOrder(_starts(task), write) if groups.is_reporting_rank else None
    decoder = Decoder(model, Sampling.of(options), groups.pipeline)
    texts = written(decoder, task.beginnings, task.tokenizer, task.ends, options.batch_size, shown)
    if options.output and groups.is_reporting_rank:
        path = absolute_path(options.output, "output")
        write_atomically(path, "".join(map(_line, task.beginnings, texts)), "output")
    return texts


def _starts(task: Task) -> list[str]:
    """Return what is shown before each text: the prompt, and if there are several texts, which one it is."""
    count = len(task.beginnings)
    heads = [f"--- {index} of {count}\n" if count > 1 else "" for index in range(1, count + 1)]
    return [f"{head}{one.prompt.shown}" for head, one in zip(heads, task.beginnings, strict=True)]


def _line(one: Beginning, text: Text) -> str:
    assert text.end is not None, "the decoder has written it"
    held = {
        "prompt": one.prompt.text,
        "seed": one.seed,
        "text": text.shown,
        "tokens": len(text.drawn),
        "end": text.end.value,
    }
    return json.dumps(held, ensure_ascii=False) + "\n"


def _memory_told(task: Task) -> str:
    plan = task.plan
    rows = min(task.options.batch_size, len(task.beginnings))
    length = max(len(one.ids) + one.max_tokens - 1 for one in task.beginnings)
    held = [tuple(layer.name for layer in stage.layers) for stage in stages(plan)]
    elements = max(cache_elements(plan.model, plan.tensor_parallel_size, names, length) for names in held)
    size = rows * elements * _FP32_BYTES / _MIB
    place = "" if plan.mesh.size == 1 else " on a rank"
    return f"cache  {size:,.1f} MiB{place} for keys and values of {rows} x {length} tokens"
