"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks import suites
from benchmarks.case import CASES
from benchmarks.suites import Settings

SUITES: dict[str, Callable[[Settings], Path]] = {
    "single": suites.single,
    "layouts": suites.layouts,
    "stock": suites.stock,
    "variants": suites.variants,
}


def main(argv: list[str] | None = None) -> int:
    """Run one suite."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Contenders train the same model from the same weights on the same tokens, in turns.",
        epilog="Results: benchmarks/results/<date>_<suite>_<case>.json and .md",
    )
    parser.add_argument("suite", choices=[*SUITES])
    parser.add_argument("--case", choices=[*CASES], default="cpu", help="what is trained (default: cpu)")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each contender (default: 12)")
    parser.add_argument("--steps", type=int, default=1, help="optimizer steps in a turn (default: 1)")
    parser.add_argument("--warmup", type=int, default=12, help="steps before the first timed one (default: 12)")
    parser.add_argument("--only", default="", help="contenders to take part, names separated by semicolons")
    parser.add_argument("--variant", action="append", default=[], help="variants: words after `trident train`")
    parser.add_argument("--micro-batch-size", type=int, help="instead of the case's")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of one process (default: 2)")
    parser.add_argument("--site", help="folder of further packages, from `pip install --target`")
    parser.add_argument("--results", type=Path, help="folder of the results (default: benchmarks/results)")
    words = parser.parse_args(argv)
    case = CASES[words.case]
    if words.micro_batch_size:
        case = replace(case, micro_batch_size=words.micro_batch_size)
    SUITES[words.suite](
        Settings(
            case=case,
            rounds=words.rounds,
            steps=words.steps,
            warmup=words.warmup,
            only=tuple(name.strip() for name in words.only.split(";") if name.strip()),
            site=words.site,
            results=words.results,
            threads=words.threads,
            variants=tuple(words.variant),
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
