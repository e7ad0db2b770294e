"""Which cases are tried: a fair sample in every run of the tests, all of them with `--run-matrix`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from tests.helpers.options import OPTION_SETS
from tests.helpers.parity import Case

WORLD_SIZES = (1, 2, 4, 8)
_BIASES = ("attention.qkv.bias", "attention.output.bias", "mlp.up.bias", "mlp.down.bias")
OPTIONS = tuple(filter(None, OPTION_SETS))
"""Sets of the model's options."""
EMBEDDINGS = ("embedding", "position")
"""Frozen with the head, where it is tied."""
FIRST_LAYERS = ("embedding", "position", "blocks.0")
"""All that a first of two stages has."""
VECTORS = tuple(f"blocks.0.{name}" for name in ("attention_norm", "mlp_norm", *_BIASES))
"""Of the first block: a first of two stages trains matrices only."""


def layouts(world_size: int) -> Iterator[tuple[int, int, int, bool]]:
    """Yield every (pp, tp, dp, sequence_parallel) of a world."""
    sizes = [size for size in (1, 2, 4, 8) if world_size % size == 0]
    for pp, tp in product(sizes, sizes):
        if world_size % (pp * tp) == 0:
            for sequence_parallel in (False, True) if tp > 1 else (False,):
                yield pp, tp, world_size // (pp * tp), sequence_parallel


def memory_options(pp: int) -> tuple[tuple[int, str], ...]:
    """Return the legal (ZeRO stage, offload) pairs."""
    with_pipeline = ((0, "none"), (1, "none"), (1, "cpu"))
    return with_pipeline if pp > 1 else (*with_pipeline, (2, "none"), (2, "cpu"), (3, "none"), (3, "cpu"))


def matrix_of(layout: tuple[int, int, int, bool]) -> list[Case]:
    """Return every case of one layout: they run in the same ranks, one after the other."""
    pp, tp, dp, sequence_parallel = layout
    cases = [
        Case(pp, tp, dp, sequence_parallel, zero, offload, num_micro_batches=m, tied=tied, llama=llama)
        for (zero, offload), m, tied, llama in product(memory_options(pp), (1, 2, 8), (True, False), (False, True))
    ]
    cases += [
        Case(pp, tp, dp, sequence_parallel, zero, offload, fused_loss=fused, llama=not fused, uneven=True)
        for (zero, offload), fused in product(memory_options(pp), (True, False))
    ]
    if pp == 1:
        cases += [
            Case(pp, tp, dp, sequence_parallel, 3, "cpu", offload_parameters=True, tied=tied, llama=llama)
            for tied, llama in product((True, False), (False, True))
        ]
    elif pp <= 4:
        cases += [Case(pp, tp, dp, sequence_parallel, num_micro_batches=2 * pp, schedule="dualpipev", uneven=True)]
        cases += [
            Case(
                pp,
                tp,
                dp,
                sequence_parallel,
                zero,
                num_micro_batches=2 * pp,
                tied=tied,
                llama=llama,
                schedule="dualpipev",
            )
            for zero, tied, llama in product((0, 1), (True, False), (False, True))
        ]
    return [*cases, *frozen_cases(layout), *option_cases(layout), *packed_cases(layout)]


SAMPLE: tuple[tuple[Case, ...], ...] = (
    (
        Case(num_micro_batches=1),
        Case(zero=0, llama=True, tied=False),
        Case(zero=2, num_micro_batches=8, fused_loss=False, uneven=True, evaluate=True),
        Case(zero=3, offload="cpu", offload_parameters=True),
        Case(recompute="full", evaluate=True),
        Case(cpu_matmul="onednn"),
        Case(cpu_matmul="torch", llama=True, tied=False),
        Case(zero=3, cpu_matmul="onednn", evaluate=True),
    ),
    (
        Case(dp=2, zero=0),
        Case(dp=2, zero=1, offload="cpu", llama=True),
        Case(dp=2, zero=2, num_micro_batches=8, evaluate=True),
        Case(dp=2, zero=3, tied=False, uneven=True, evaluate=True),
        Case(dp=2, zero=0, num_micro_batches=1, fused_loss=False, uneven=True),
        Case(dp=2, zero=3, offload="cpu", evaluate=True),
    ),
    (
        Case(tp=2, sequence_parallel=True),
        Case(tp=2, zero=0, llama=True, fused_loss=False),
        Case(tp=2, zero=3, sequence_parallel=True, tied=False, llama=True),
        Case(tp=2, recompute="selective", evaluate=True),
        Case(tp=2, sequence_parallel=True, cpu_matmul="onednn", fused_loss=False),
        Case(tp=2, zero=0, cpu_matmul="onednn"),
        Case(tp=2, compiled=True, uneven=True, sequence_parallel=True),
        Case(tp=2, zero=0, fused_loss=False, uneven=True),
    ),
    (
        Case(pp=2, zero=0),
        Case(pp=2, zero=0, cpu_matmul="onednn"),
        Case(pp=2, zero=0, cpu_matmul="torch"),
        Case(pp=2, zero=0, num_micro_batches=8, llama=True, tied=False, fused_loss=False),
        Case(pp=2, num_micro_batches=1, tied=False),
        Case(pp=2, uneven=True, evaluate=True),
        Case(pp=2, zero=0, tied=False, fused_loss=False, uneven=True),
        Case(pp=2, offload="cpu", evaluate=True, num_micro_batches=8, fused_loss=False),
        Case(pp=2, recompute="full", evaluate=True),
        Case(pp=2, recompute="full", evaluate=True, compiled=True),
        Case(pp=2, schedule="dualpipev", num_micro_batches=4, evaluate=True),
        Case(pp=2, schedule="dualpipev", num_micro_batches=8, zero=0, tied=False, llama=True),
        Case(pp=2, schedule="dualpipev", num_micro_batches=4, uneven=True, evaluate=True),
    ),
    (Case(pp=2, dp=2, zero=0), Case(pp=2, dp=2, offload="cpu"), Case(pp=2, dp=2, num_micro_batches=8, llama=True)),
    (Case(tp=2, dp=2, sequence_parallel=True, zero=2), Case(tp=2, dp=2, zero=3), Case(tp=2, dp=2, zero=0)),
    (Case(pp=4), Case(pp=4, num_micro_batches=8, tied=False, llama=True), Case(pp=4, num_micro_batches=1, zero=0)),
    (
        Case(tp=4, sequence_parallel=True),
        Case(tp=4, llama=True, tied=False),
    ),
    (
        Case(pp=2, tp=2, sequence_parallel=True, recompute="selective", evaluate=True),
        Case(pp=2, tp=2, schedule="dualpipev", num_micro_batches=4),
    ),
    (
        Case(pp=2, tp=2, dp=2),
        Case(pp=2, tp=2, dp=2, sequence_parallel=True, uneven=True),
        Case(pp=2, tp=2, dp=2, sequence_parallel=True, llama=True, offload="cpu", evaluate=True),
        Case(pp=2, tp=2, dp=2, sequence_parallel=True, packed=True, sliced=True, keeps_labels=True),
    ),
)
"""Tuples share a layout, and so their ranks."""
OPTION_SAMPLE: tuple[tuple[Case, ...], ...] = (
    (
        Case(dp=2, zero=3, options="bloom", evaluate=True),
        Case(tp=2, zero=2, options="cohere", evaluate=True),
        Case(tp=2, zero=3, options="neox", tied=False, sequence_parallel=True),
        Case(tp=2, zero=0, options="gemma", uneven=True),
        Case(pp=2, zero=1, options="cohere", fused_loss=False, evaluate=True),
        Case(pp=2, schedule="dualpipev", num_micro_batches=4, options="bloom"),
    ),
    (
        Case(tp=4, options="olmo2", sequence_parallel=True, tied=False),
        Case(tp=4, options="cohere", zero=0, recompute="full"),
    ),
)
"""Options of the model, in layouts of as many ranks."""
PACKED: tuple[tuple[Case, ...], ...] = (
    (
        Case(dp=2, zero=2, packed=True, uneven=True, recompute="selective", evaluate=True),
        Case(tp=2, llama=True, packed=True, sliced=True, sequence_parallel=True, recompute="full"),
        Case(tp=2, zero=0, options="mistral", packed=True, fused_loss=False),
        Case(pp=2, options="bloom", packed=True, sliced=True, keeps_labels=True, evaluate=True),
        Case(pp=2, schedule="dualpipev", num_micro_batches=4, options="mistral", packed=True, uneven=True),
        Case(pp=2, schedule="dualpipev", num_micro_batches=4, options="mistral", packed=True, sliced=True),
    ),
    (Case(packed=True, keeps_labels=True, recompute="full"), Case(options="mistral", packed=True, sliced=True)),
    (Case(pp=2, tp=2, packed=True, sequence_parallel=True, recompute="selective", evaluate=True),),
    (Case(pp=2, tp=2, dp=2, zero=1, packed=True, uneven=True),),
)
"""Sequences of several documents."""
FROZEN: tuple[tuple[Case, ...], ...] = (
    (
        Case(dp=2, zero=0, frozen=EMBEDDINGS),
        Case(dp=2, zero=1, frozen=VECTORS, offload="cpu"),
        Case(dp=2, zero=2, frozen=FIRST_LAYERS, tied=False, llama=True),
        Case(dp=2, zero=3, frozen=EMBEDDINGS, evaluate=True),
        Case(dp=2, zero=3, frozen=FIRST_LAYERS, tied=False, recompute="full"),
        Case(dp=2, zero=1, frozen=EMBEDDINGS, dtype="bf16"),
    ),
    (
        Case(pp=2, zero=0, frozen=EMBEDDINGS),
        Case(pp=2, zero=0, frozen=FIRST_LAYERS, tied=False, llama=True),
        Case(pp=2, zero=1, frozen=FIRST_LAYERS, tied=False, offload="cpu", evaluate=True),
        Case(pp=2, zero=1, frozen=VECTORS, dtype="fp16"),
        Case(pp=2, zero=1, frozen=FIRST_LAYERS, tied=False, dtype="bf16"),
        Case(pp=2, zero=0, frozen=FIRST_LAYERS, tied=False, schedule="dualpipev", num_micro_batches=4),
    ),
    (
        Case(pp=2, dp=2, zero=1, frozen=FIRST_LAYERS, tied=False, num_micro_batches=4),
        Case(pp=2, dp=2, zero=1, frozen=EMBEDDINGS, schedule="dualpipev", num_micro_batches=4),
    ),
    (
        Case(tp=2, zero=1, frozen=EMBEDDINGS, sequence_parallel=True),
        Case(tp=2, zero=0, frozen=FIRST_LAYERS, tied=False, fused_loss=False),
        Case(tp=2, zero=3, frozen=VECTORS, llama=True, tied=False),
    ),
)
"""A part of the model is not trained, under each optimizer that DeepSpeed makes of ours."""


def frozen_cases(layout: tuple[int, int, int, bool]) -> list[Case]:
    """Return the cases of one layout in which a part of the model is not trained, under every wrapper."""
    pp, tp, dp, sequence_parallel = layout
    place = Case(pp, tp, dp, sequence_parallel, num_micro_batches=4)
    cases = [replace(place, zero=zero, offload=offload, frozen=EMBEDDINGS) for zero, offload in memory_options(pp)]
    cases += [replace(place, zero=zero, frozen=FIRST_LAYERS, tied=False, llama=True) for zero in (0, 1)]
    cases += [replace(place, zero=zero, frozen=VECTORS, fused_loss=False) for zero in (0, 1)]
    return cases


def option_cases(layout: tuple[int, int, int, bool]) -> list[Case]:
    """Return the cases of one layout with options of the model: each set under every ZeRO stage, and recomputed."""
    pp, tp, dp, sequence_parallel = layout
    place, cases = Case(pp, tp, dp, sequence_parallel), list[Case]()
    for index, name in enumerate(OPTIONS):
        one = replace(place, options=name)
        for zero in (0, 1) if pp > 1 else (0, 1, 2, 3):
            cases.append(replace(one, zero=zero, tied=(index + zero) % 2 == 0, fused_loss=zero > 0))
        cases.append(replace(one, recompute=("selective", "full")[index % 2]))
        if 1 < pp <= 4:
            cases.append(replace(one, schedule="dualpipev", num_micro_batches=2 * pp, tied=index % 2 == 0))
    return cases


def packed_cases(layout: tuple[int, int, int, bool]) -> list[Case]:
    """Return the cases of one layout in which sequences hold several documents."""
    pp, tp, dp, sequence_parallel = layout
    place = Case(pp, tp, dp, sequence_parallel, packed=True, evaluate=True)
    cases = [
        replace(place, zero=zero, uneven=zero == 0, llama=zero == 1, sliced=zero == 1, keeps_labels=zero == 1)
        for zero in ((0, 1) if pp > 1 else (0, 1, 2, 3))
    ]
    cases += [
        replace(place, options=name, recompute=kind) for name, kind in (("bloom", "full"), ("mistral", "selective"))
    ]
    if 1 < pp <= 4:
        cases.append(replace(place, schedule="dualpipev", num_micro_batches=2 * pp, options="mistral"))
    return cases


def layout_name(layout: tuple[int, int, int, bool]) -> str:
    """Return the name of a layout."""
    pp, tp, dp, sequence_parallel = layout
    return f"pp{pp}-tp{tp}-dp{dp}" + "-sp" * sequence_parallel


def _half(dtype: str) -> tuple[tuple[Case, ...], ...]:
    """Where 16 bits and fp32 accumulation meet: each optimizer that DeepSpeed would choose, tied, on both engines."""
    return (
        (
            Case(dp=2, dtype=dtype, llama=True),
            Case(dp=2, dtype=dtype, zero=2, offload="cpu"),
            Case(dp=2, dtype=dtype, zero=1, uneven=True),
            Case(dp=2, dtype=dtype, zero=3),
        ),
        (
            Case(pp=2, dtype=dtype, num_micro_batches=4),
            Case(pp=2, dtype=dtype, num_micro_batches=4, offload="cpu"),
            Case(pp=2, dtype=dtype, num_micro_batches=4, schedule="dualpipev"),
            Case(pp=2, dtype=dtype, num_micro_batches=4, uneven=True),
            Case(pp=2, dtype=dtype, num_micro_batches=8, recompute="full", evaluate=True),
        ),
        (
            Case(pp=2, tp=2, dtype=dtype, sequence_parallel=True, num_micro_batches=8),
            Case(pp=2, tp=2, dtype=dtype, offload="cpu"),
        ),
    )


HALF_PRECISION = (*_half("bf16"), *_half("fp16"))
