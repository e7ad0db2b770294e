"""Greedy generation: the same model and prompts by Trident and by `transformers.generate`.

Options: `by` (trident or transformers), `cache` (keys and values are kept, or the whole text is read again for each
token), `texts` (written at once), `prompt` and `new` (tokens of each text). A step writes all texts; in place of a loss
it reports a checksum of their tokens.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.case import Case
from benchmarks.contenders.common import initial_weights, set_up
from benchmarks.contenders.transformers_trainer import hugging_face_model
from benchmarks.gate import Gate
from trainer.engine.host_memory import keep_freed_memory
from trainer.generation.decoder import Decoder, Request
from trainer.generation.sampling import Sampling
from trainer.inference.stage import StageModel, stage_model
from trainer.model.cache import KeyValueCache
from trainer.tensor_parallel.init import fill
from trainer.tensor_parallel.shard import with_padding

Write = Callable[[list[list[int]], int], list[list[int]]]
"""(prompts, number of tokens) -> the tokens that follow each prompt."""


def prompts_of(case: Case, texts: int, length: int) -> list[list[int]]:
    """Return prompts that are as long as each other, so that no contender has to pad."""
    generator = torch.Generator().manual_seed(case.seed)
    ids: list[list[int]] = torch.randint(0, case.vocab_size, (texts, length), generator=generator).tolist()
    return ids


def _our_model(case: Case, device: torch.device) -> StageModel:
    weights, plan = initial_weights(case), case.plan()
    model = stage_model(plan.model, plan.execution)
    fill(model, lambda spec, _: with_padding(weights[spec.name], spec), device)
    return model


def _with_cache(case: Case, device: torch.device) -> Write:
    decoder = Decoder(_our_model(case, device), Sampling(temperature=0.0))

    def write(prompts: list[list[int]], count: int) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in prompts]

        def taking(text: list[int]) -> Callable[[int], bool]:
            def take(token: int) -> bool:
                text.append(token)
                return len(text) < count

            return take

        decoder.write(
            [Request(tuple(ids), count, 0, taking(text)) for ids, text in zip(prompts, found, strict=True)],
            len(prompts),
        )
        return found

    return write


def _without_cache(case: Case, device: torch.device) -> Write:
    model = _our_model(case, device)

    @torch.inference_mode()
    def write(prompts: list[list[int]], count: int) -> list[list[int]]:
        (text,) = (list(ids) for ids in prompts)
        for _ in range(count):
            ids = torch.tensor([text], device=device)
            text.append(int(model(ids, KeyValueCache(1, len(text)).begin(0, ids)).argmax()))
        return [text[len(prompts[0]) :]]

    return write


def _by_transformers(case: Case, device: torch.device, cache: bool) -> Write:
    model = hugging_face_model(case).eval().to(device)
    model.generation_config.eos_token_id = None

    def write(prompts: list[list[int]], count: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=device)
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            use_cache=cache,
            pad_token_id=0,
        )
        drawn: list[list[int]] = found[:, ids.shape[1] :].tolist()
        return drawn

    return write


def run(case: Case, options: Mapping[str, Any], gate: Gate) -> None:
    """Build and write."""
    device = set_up(case)
    if options["by"] == "transformers":
        write = _by_transformers(case, device, bool(options["cache"]))
    else:
        write = (_with_cache if options["cache"] else _without_cache)(case, device)
    if case.device == "cpu":
        keep_freed_memory()  # as in training
    prompts = prompts_of(case, options["texts"], options["prompt"])
    gate.open(threads=torch.get_num_threads())
    while True:
        drawn = write(prompts, options["new"])
        gate.done([float(zlib.crc32(json.dumps(drawn).encode()))])
