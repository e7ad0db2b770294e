"""Writes texts at each evaluation, as a hook of the loop.

The live model may be sharded over stages, tensor-parallel ranks and ZeRO-3 ranks, under two engines. Its weights go to
the reporting rank's CPU the way they go into a checkpoint, and a plain model in one piece writes there: one path, right
in every layout, which disturbs no engine. The price is the limit on the model's size in `check.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from trainer.config.plan import RunPlan
from trainer.data.tokenizer import Tokenizer, load_tokenizer
from trainer.engine.face import Engine
from trainer.generation.continuation import prompt_ids
from trainer.generation.decoder import BATCH_SIZE, Decoder
from trainer.generation.generate import written
from trainer.generation.prompts import Prompt
from trainer.generation.sampling import Sampling
from trainer.generation.task import Beginning
from trainer.generation.text import Ends
from trainer.inference.model_source import end_ids, exported_tokenizer
from trainer.inference.stage import stage_model
from trainer.loop.events import Hook, StepReport
from trainer.metrics.sink import Sample
from trainer.samples.weights import WeightGatherer
from trainer.tensor_parallel.init import fill
from trainer.tensor_parallel.shard import with_padding
from trainer.topology.groups import ParallelGroups


class SamplesHook(Hook):
    """Lives on every rank; the reporting rank writes the texts.

    Args:
        engine: this rank's engine.
        plan: numbers of the run; `eval.samples` is above 0.
        tokenizer_folder: the run's tokenizer; read by the reporting rank.
        kept: the folder of the small files that its weights came with, which need not exist.
        groups: this rank's place.
        publish: takes the texts of an evaluation, on the reporting rank.
    """

    def __init__(
        self,
        engine: Engine,
        plan: RunPlan,
        tokenizer_folder: Path,
        kept: Path,
        groups: ParallelGroups,
        publish: Callable[[Sequence[Sample]], None],
    ) -> None:
        self._plan, self._eval = plan, plan.evaluation
        self._tokenizer_folder, self._kept = tokenizer_folder, kept
        self._weights = WeightGatherer(engine, plan.zero_stage == 3, groups)
        self._publish = publish
        self._tokenizer: Tokenizer | None = None

    def on_report(self, report: StepReport) -> None:
        """Write texts after an evaluation. Collective over the world then; others do not wait for the texts."""
        if report.eval_loss is None:
            return
        weights = self._weights.gather()
        if weights is not None:
            self._publish(self._write(report.step, weights))

    def _write(self, step: int, weights: Mapping[str, torch.Tensor]) -> list[Sample]:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._tokenizer_folder)
        # Built anew, which takes no memory; it is filled with the gathered tensors themselves, and goes with them.
        model = stage_model(self._plan.model, self._plan.execution)
        fill(model, lambda spec, _: with_padding(weights[spec.name], spec))
        tokenizer, wanted = self._tokenizer, self._eval
        source = exported_tokenizer(self._tokenizer_folder, self._kept)
        files = None if source == self._tokenizer_folder else source
        beginnings = []
        for prompt in wanted.prompts:
            ids = tuple(prompt_ids(tokenizer, prompt, as_imported=files is not None))
            given = Prompt(prompt, "eval.prompts", prompt)
            beginnings += [Beginning(given, ids, wanted.max_tokens, wanted.seed + i) for i in range(wanted.samples)]
        decoder = Decoder(model, Sampling(temperature=wanted.temperature))
        texts = written(decoder, beginnings, tokenizer, Ends(frozenset(end_ids(tokenizer, files))), BATCH_SIZE)
        return [Sample(step, one.prompt.text, text.shown) for one, text in zip(beginnings, texts, strict=True)]
