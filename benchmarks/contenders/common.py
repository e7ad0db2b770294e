"""The start of every contender: the same weights and the same tokens, made by Trident's own code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.case import Case
from trainer.data.batches import training_batches
from trainer.data.prepare import prepare
from trainer.mesh import Mesh
from trainer.micro_batch import MicroBatch
from trainer.model.gpt import GPT, ModelContext
from trainer.tensor_parallel.init import Drawn, fill
from trainer.tensor_parallel.shard import shard_spec, without_padding
from trainer.topology.groups import SingleGroup


def set_up(case: Case) -> torch.device:
    """Set threads and device of this rank as its environment says."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if case.device == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def cache_override() -> str:
    """Return where the generated tokens are kept."""
    cache = os.environ.get("TRIDENT_CACHE")
    return f"data.cache_dir={Path(cache) / 'benchmarks' if cache else Path('~/.cache/trident-benchmarks').expanduser()}"


class Tokens:
    """The tokens of one replica, in the order in which Trident trains on them."""

    def __init__(self, case: Case, device: torch.device, dp_rank: int = 0, data_parallel_size: int = 1) -> None:
        plan = case.plan((cache_override(),))
        plan = replace(plan, mesh=Mesh(1, data_parallel_size, 1))
        self._tokens_per_step = case.tokens_per_step
        self._source = training_batches(prepare(plan.config), plan, case.seq_length, dp_rank, device)

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """Return the micro-batches of step 1, 2, ..."""
        return self._source.micro_batches((step - 1) * self._tokens_per_step)


def steps(case: Case) -> Iterator[tuple[int, float]]:
    """Yield step numbers, without end, and their learning rates."""
    step = 0
    while True:
        step += 1
        yield step, case.learning_rate(step)


def initial_weights(case: Case) -> dict[str, torch.Tensor]:
    """Return the whole model's weights by Trident's names, fp32, without vocabulary padding."""
    plan, group = case.plan(), SingleGroup()
    context = ModelContext(group, False, plan.execution, spec=plan.model)
    model = GPT(context)
    fill(model, Drawn(case.seed, group))
    return {shard_spec(p).name: without_padding(p.detach(), shard_spec(p)) for p in model.parameters()}


def dtype_of(case: Case) -> torch.dtype:
    """Return the compute precision."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[case.dtype]
