"""One rank of one contender: `python -m benchmarks.worker SPEC`, started by `arena.py`.

SPEC is JSON: case, kind of contender, its options, and the two file descriptors over which turns are asked for.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable

from benchmarks.case import Case
from benchmarks.gate import Finished, Gate
from benchmarks.meter import PeakMeter


class Unavailable(Exception):
    """This contender cannot run here; says why in one line."""


def main() -> int:
    """Build the contender and train until told to stop."""
    spec = json.loads(sys.argv[1])
    case = Case.from_dict(spec["case"])
    requests, answers = os.fdopen(spec["requests"]), os.fdopen(spec["answers"], "w")
    meter = PeakMeter(case.device)
    gate = Gate(requests, answers, _synchronizer(case), meter)
    try:
        contender = importlib.import_module(f"benchmarks.contenders.{spec['kind']}")
        meter.start()
        contender.run(case, spec["options"], gate)
    except Finished:
        pass
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        gate.answer(failed=reason_of(error))
    # Some trainers leave threads behind that keep an interpreter from ending.
    os._exit(0)


def reason_of(error: BaseException) -> str:
    """Return why something failed, in one line."""
    first = (str(error).strip().splitlines() or [""])[0]
    if type(error).__name__ == "Unavailable":
        return first
    return f"{type(error).__name__}: {first}"[:300]


def _synchronizer(case: Case) -> Callable[[], None]:
    if case.device != "cuda":
        return lambda: None
    import torch

    return torch.cuda.synchronize


if __name__ == "__main__":
    raise SystemExit(main())
