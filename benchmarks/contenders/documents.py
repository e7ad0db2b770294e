"""Documents that do not see each other against a whole sequence: attention alone in each way, and a model's passes.

Options: `cases`, one a step, whose extras tell its rows; `parts`: documents have a sequence's tokens divided by one of
them in the mean; `warmup` and `repeats`. Ways take turns, in an order that reverses every round; each round draws
documents anew, the same ones for all ways.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.case import Case
from benchmarks.contenders.common import dtype_of, set_up
from benchmarks.contenders.kernels import Attention
from benchmarks.contenders.kernels_loss import Row, row_of
from benchmarks.figures import paired, spread
from benchmarks.gate import Gate
from trainer.engine.host_memory import keep_freed_memory
from trainer.kernels.document_attention import attend, by_mask, by_slices, can_varlen, way_on_cpu
from trainer.micro_batch import Documents, MicroBatch
from trainer.model.context import ModelContext
from trainer.model.gpt import GPT
from trainer.tensor_parallel.init import Drawn, fill
from trainer.topology.groups import SingleGroup

UNMASKED, CHOSEN = "unmasked", "as chosen"
Work = Callable[[Documents], object]


def drawn(case: Case, part: int, number: int, device: torch.device) -> Documents:
    """Return documents of seq_length / `part` tokens in the mean, if sequences did not cut them, for round `number`."""
    generator = torch.Generator().manual_seed(1000 * part + number)
    begins = torch.rand(case.micro_batch_size, case.seq_length, generator=generator) < part / case.seq_length
    return Documents.of(begins).to(device)


def in_turns(
    work: Mapping[str, Work], documents: Callable[[int], Documents], device: torch.device, warmup: int, repeats: int
) -> dict[str, list[float]]:
    """Return the seconds of each round by way."""
    found: dict[str, list[float]] = {name: [] for name in work}
    for number in range(warmup + repeats):
        own = documents(number)
        for name in [*work] if number % 2 else [*work][::-1]:
            started = time.perf_counter()
            work[name](own)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            found[name].append(time.perf_counter() - started)
    return {name: seconds[warmup:] for name, seconds in found.items()}


def attention_ways(case: Case, device: torch.device) -> dict[str, Work]:
    """Return forward and backward of attention by way."""
    attention = Attention(case, device)

    def both(output: Callable[..., torch.Tensor]) -> object:
        found = output(*attention.parts()).permute(2, 0, 1, 3).flatten(2)
        return torch.autograd.grad(found, attention.qkv, attention.grad)

    ways: dict[str, Work] = {
        UNMASKED: lambda _: both(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
        CHOSEN: lambda own: both(lambda q, k, v: attend(q, k, v, own, None, None, None)),
        "mask": lambda own: both(lambda q, k, v: by_mask(q, k, v, own, None, None, None)),
        "slices": lambda own: both(lambda q, k, v: by_slices(q, k, v, own, None, None, None)),
    }
    return ways


def model_ways(case: Case, device: torch.device) -> dict[str, Work]:
    """Return forward and backward of the whole model, without the optimizer, whose time is the same."""
    plan, group = case.plan(), SingleGroup()
    model = GPT(ModelContext(group, False, plan.execution, spec=plan.model))
    fill(model, Drawn(case.seed, group))
    model = model.to(device, dtype_of(case)).train()
    shape = (case.micro_batch_size, case.seq_length)
    ids = torch.randint(0, case.vocab_size, shape, generator=torch.Generator().manual_seed(case.seed)).to(device)

    def passes(own: Documents | None) -> None:
        for parameter in model.parameters():
            parameter.grad = None
        model(MicroBatch.of(ids, ids, documents=own)).backward()

    return {UNMASKED: lambda _: passes(None), CHOSEN: passes}


def measured(case: Case, part: int, what: str, device: torch.device, warmup: int, repeats: int) -> Row:
    """Return milliseconds by way, and how many times as fast as unmasked it is in the same round."""
    work = (attention_ways if what == "attention" else model_ways)(case, device)
    draws = [drawn(case, part, number, device) for number in range(warmup + repeats)]
    seconds = in_turns(work, draws.__getitem__, device, warmup, repeats)
    lengths = [length for own in draws for row in own.lengths for length in row]
    head_dim = case.hidden_size // case.num_heads
    chosen = {
        "varlen" if can_varlen(device, dtype_of(case), head_dim) else way_on_cpu(own, case.num_heads, head_dim).value
        for own in draws
    }
    return {
        "mean_length": sum(lengths) / len(lengths),
        "way": ", ".join(sorted(chosen)),
        "ms": {name: 1e3 * spread(values).median for name, values in seconds.items()},
        "ratios": {name: paired(values, seconds[UNMASKED]).to_dict() for name, values in seconds.items()},
    }


def run(case: Case, options: Mapping[str, Any], gate: Gate) -> None:
    """Measure a case a step, as the parent names them; then wait."""
    device = set_up(case)
    if case.device == "cpu":
        keep_freed_memory()  # as in training
    torch.manual_seed(case.seed)
    rows: list[Row] = []
    gate.extras = lambda: {"rows": rows}
    gate.open(device=device.type)
    for one in map(Case.from_dict, options["cases"]):
        rows = [
            row_of(
                {"case": one.name, "seq": one.seq_length, "batch": one.micro_batch_size, "part": part, "what": what},
                partial(measured, one, part, what, device, options["warmup"], options["repeats"]),
            )
            for what in ("attention", "model")
            for part in options["parts"]
        ]
        gate.done([0.0])
