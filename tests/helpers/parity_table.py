"""Make docs/parity.md of the lines that the parity matrix reports.

usage: python -m tests.helpers.parity_table REPORT COMMIT > docs/parity.md
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.helpers.parity import STEPS, TOLERANCES, Case, Errors, tolerance_of
from tests.helpers.parity_cases import WORLD_SIZES, layout_name, layouts, matrix_of

HEAD = """# Parity: every layout trains the same model

The promise is "same command, same config, same numbers". This page is the whole parity matrix, as measured.

**The oracle** is a plain single-process GPT with AdamW, written from the papers in `trainer/oracle/reference.py`; it
imports none of the code that it judges. **A case** is one layout with one ZeRO stage, offload, number of micro-batches,
kind of model (GPT-2-like: learned positions, LayerNorm, GELU, biases; LLaMA-like: rotary positions, RMSNorm, SwiGLU,
grouped keys and values, no biases), tied or untied embeddings, and pipeline schedule. It trains {steps} steps in fp32
with gradient clipping active, in real processes over gloo, through the same engine that `trident train` uses. Compared
are the loss and the gradient norm of each step, every gradient of step 1 (read back from AdamW's first moment), and
every weight after the last step, put together from all ranks. The copies of a tied embedding must be equal bit for bit,
and so must the losses and norms that different ranks report.

Tolerances, relative: loss, gradient norm and weights {loss:g}, gradients {gradient:g}. Each is some tens of fp32
roundings; a gradient that is counted twice, left out, or divided by the wrong number is off by 1e-1.

**{passed} of {total} cases pass.** The columns are the largest difference among the cases of a row.

| layout | ZeRO, offload | cases | pass | loss | gradient norm | gradients | weights |
|---|---|---:|---:|---:|---:|---:|---:|
"""

FOOT = """
`sp`: with sequence parallelism. `+ parameters`: ZeRO-3 with parameters offloaded too. Every row holds num_micro_batches
1, 2 and 8 (DualPipeV: 2 pp), tied and untied, GPT-2-like and LLaMA-like. `uneven tokens`: labels of -100, weights of 0
and of 0.5, and a micro-batch in which nothing counts. `frozen`: embeddings, the first layers, or vectors are not
trained. `options`: models with other norms, wirings, positions, heads and scales (`tests/helpers/options.py`);
the tolerance of their gradients is 3e-6, with norms of queries and keys 1e-5, then 1e-4 for the gradient norm and 3e-5
for weights, since there the oracle in fp32 is about as far from itself in fp64. With `clip_qkv`, at whose edge a value
may fall to either side, it is 1e-3 for the gradient norm and 1e-4 for weights (one row; without the clip, none).
`packed`: sequences of several documents, each of which the oracle computes alone; `sliced`: here too, instead of with a
mask; `labels kept`: the last token of a document predicts the next one's first.

Measured at commit {commit} with DeepSpeed {deepspeed}, torch {torch}, Python {python}, on CPU, by

```bash
pytest tests/dist/test_parity.py --run-matrix --parity-report parity.jsonl
python -m tests.helpers.parity_table parity.jsonl $(git rev-parse --short HEAD) > docs/parity.md
```

Every run of the tests tries a sample of the matrix, and bf16 and fp16 against the same oracle with wider tolerances
(`tests/helpers/parity.py` says why they are what they are).

What this does not prove: NCCL, several machines, and speed.
"""


@dataclass(frozen=True)
class Row:
    """One line of the table: the cases of a layout that share ZeRO stage, offload and schedule."""

    layout: str
    memory: str


def read(report: Path) -> dict[Case, Errors]:
    """Return the errors of each reported case; of a case reported twice, the later one."""
    lines = (json.loads(line) for line in report.read_text().splitlines())
    return {_case(line["case"]): Errors(**line["errors"]) for line in lines}


def _case(values: dict[str, Any]) -> Case:
    # JSON knows no tuples.
    return Case(**{**values, "frozen": tuple(values["frozen"])})


def row_of(case: Case) -> Row:
    """Return the row that a case belongs to."""
    layout = layout_name((case.pp, case.tp, case.dp, case.sequence_parallel))
    memory = f"{case.zero}" + f", {case.offload}" * (case.offload != "none") + " + parameters" * case.offload_parameters
    memory += ", uneven tokens" * case.uneven + ", frozen" * bool(case.frozen) + ", options" * bool(case.options)
    memory += ", packed" * case.packed + ", sliced" * case.sliced + ", labels kept" * case.keeps_labels
    return Row(layout + f" {case.schedule}" * (case.schedule != "1f1b"), memory)


def passes(case: Case, errors: Errors) -> bool:
    """Return whether a case is within its tolerances."""
    tolerance = tolerance_of(case)
    return (
        errors.loss < tolerance.loss
        and errors.grad_norm < tolerance.grad_norm
        and errors.gradient < tolerance.gradient
        and errors.weight < tolerance.weight
    )


def table(found: dict[Case, Errors], cases: Iterable[Case]) -> list[str]:
    """Return a line for each row; a case that was not reported counts as not passed."""
    rows: dict[Row, list[Case]] = {}
    for case in cases:
        rows.setdefault(row_of(case), []).append(case)
    return [_line(row, members, found) for row, members in rows.items()]


def _line(row: Row, cases: Sequence[Case], found: dict[Case, Errors]) -> str:
    known = {case: found[case] for case in cases if case in found}
    worst = [max((getattr(e, name) for e in known.values()), default=float("nan")) for name in Errors.NUMBERS]
    cells = [row.layout, row.memory, str(len(cases)), str(sum(passes(*pair) for pair in known.items()))]
    return "| " + " | ".join([*cells, *(f"{number:.0e}" for number in worst)]) + " |"


def page(found: dict[Case, Errors], commit: str) -> str:
    """Return docs/parity.md."""
    cases = [case for size in WORLD_SIZES for layout in layouts(size) for case in matrix_of(layout)]
    passed = sum(case in found and passes(case, found[case]) for case in cases)
    tolerance = TOLERANCES["fp32"]
    head = HEAD.format(
        steps=STEPS, loss=tolerance.loss, gradient=tolerance.gradient, passed=f"{passed:,}", total=f"{len(cases):,}"
    )
    foot = FOOT.format(
        commit=commit, deepspeed=version("deepspeed"), torch=version("torch"), python=platform.python_version()
    )
    return head + "\n".join(table(found, cases)) + "\n" + foot


if __name__ == "__main__":
    sys.stdout.write(page(read(Path(sys.argv[1])), sys.argv[2]))
