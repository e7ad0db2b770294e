"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from benchmarks.case import CASES, GPT3, GPU_SEQ_LENGTHS
from benchmarks.machine import gpu_names
from benchmarks.settings import Settings, UsageError
from benchmarks.suites import SUITES
from trainer.log import report_error

_DESCRIPTION = """\
Contenders train the same model from the same weights on the same tokens, in turns: A B A B, so that a busy machine
slows both. What is compared are neighbouring turns. Whose losses differ from the first contender's is not timed.

suites:
  single    Trident against its peers, one process each
  layouts   data, tensor and pipeline parallel on two ranks against one process with both threads; bubble, weak scaling
  bubble    waiting in pipelines of 2 and 4 ranks, 1 to 16 micro-batches, against the planner's simulator
  stock     Trident against the same model in an untuned stock DeepSpeed engine, layout by layout
  memory    peak memory by feature against theory; head and loss alone; the largest model (CUDA only)
  zero      memory of each ZeRO stage by owner against theory: 159M parameters on 2 ranks, 302M on 4
  plan_memory  resident memory of 25 layouts against what the planner says of them
  gpu       GPT-3 shapes in bf16 on one GPU: tokens/s, MFU in two conventions; --dry runs its code on the CPU
  kernels   GEMMs, attention by backend, head and loss, each alone, on the device at hand; --dry as in gpu
  documents  documents that do not see each other against whole sequences: attention by way, and a model's passes
  data      trident data against the tokenizer alone and a datasets.map script; memory, small files, reading at random
  generate  greedy texts: tokens/s with the cache, without it, and by transformers.generate; a step writes them all
  interchange  import and export of 1.3B parameters: time beside a copy of the files, peak memory
  variants  Trident against itself: other settings, another revision
  plan_layouts  the layout that layout=auto takes against all layouts of three models, measured on two CPU ranks
  plan_search  CPU time in which trident plan --search ranks all layouts of a model: up to 2,048 GPUs
  plan_time  predicted step times of 18 layouts against measured ones, after trident plan --calibrate
"""
_EPILOG = """\
examples:
  python -m benchmarks single --only "trident;transformers Trainer"
  python -m benchmarks layouts --rounds 20
  python -m benchmarks variants --variant "" --variant "model.fused_loss=false" --variant "ranks=2 threads=1 layout=dp2"
  python -m benchmarks gpu --models 124m,350m --seq-lengths 1024

results: benchmarks/results/<date>_<suite>_<case>.json and .md; docs/performance.md says what they hold.
exit code: 0 done, 2 the command line is wrong.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as Trident's own commands do."""
        raise UsageError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m benchmarks",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suite", choices=[*SUITES], metavar="suite", help=", ".join(SUITES))
    text = f"what is trained: {', '.join(CASES)} (default: cpu)"
    parser.add_argument("--case", choices=[*CASES], default="cpu", metavar="CASE", help=text)
    parser.add_argument("--rounds", type=_count, default=12, help="turns of each contender (default: 12)")
    parser.add_argument("--steps", type=_count, default=1, help="optimizer steps in a turn (default: 1)")
    parser.add_argument("--warmup", type=_count, default=12, help="steps before the first timed one (default: 12)")
    parser.add_argument(
        "--only", default="", help="contenders to take part (kernels, data: parts), by semicolons; the base always does"
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        help="variants: words after `trident train`, and ranks=N, threads=N, root=FOLDER; once a variant",
    )
    parser.add_argument("--models", default="", help=f"gpu, kernels: sizes, by commas: {','.join(GPT3)} (default: all)")
    parser.add_argument(
        "--seq-lengths",
        default="",
        help=f"gpu, kernels: by commas: {','.join(map(str, GPU_SEQ_LENGTHS))} (default: all)",
    )
    parser.add_argument(
        "--dry", action="store_true", help="gpu, kernels: a tiny model on the CPU, to see that the code runs"
    )
    parser.add_argument(
        "--megabytes",
        type=_count,
        help="data: size of the text (default: 200); its other sizes are in proportion to it",
    )
    parser.add_argument("--micro-batch-size", type=_count, help="instead of the case's")
    parser.add_argument("--threads", type=_count, default=2, help="CPU threads of one process (default: 2)")
    parser.add_argument(
        "--site", help="folder of further packages, from `pip install --target`; several joined as in PYTHONPATH"
    )
    parser.add_argument("--results", type=Path, help="folder of the results (default: benchmarks/results)")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, but is {text!r}")
    return int(text)


def _listed(text: str, separator: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(separator) if name.strip())


def settings_of(argv: list[str] | None) -> tuple[str, Settings]:
    """Return the suite's name and its settings.

    Raises:
        UsageError: the words are wrong.
    """
    words = _parser().parse_args(argv)
    case = CASES[words.case]
    if words.micro_batch_size:
        if case.global_batch_size % words.micro_batch_size:
            raise UsageError(
                f"--micro-batch-size must divide the case's global batch of {case.global_batch_size}, "
                f"but is {words.micro_batch_size}"
            )
        case = replace(case, micro_batch_size=words.micro_batch_size)
    if case.device == "cuda" and not gpu_names():
        raise UsageError(f"--case {case.name} needs a CUDA device, but there is none")
    for folder in (words.site or "").split(":"):
        if folder and not Path(folder).is_dir():
            raise UsageError(f"--site must name a folder, but there is no {folder}")
    if words.variant and words.suite != "variants":
        raise UsageError(f"--variant belongs to the suite variants, not to {words.suite}")
    if (words.dry or words.models or words.seq_lengths) and words.suite not in ("gpu", "kernels"):
        raise UsageError(
            f"--dry, --models and --seq-lengths belong to the suites gpu and kernels, not to {words.suite}"
        )
    if words.megabytes and words.suite != "data":
        raise UsageError(f"--megabytes belongs to the suite data, not to {words.suite}")
    settings = Settings(
        case=case,
        rounds=words.rounds,
        steps=words.steps,
        warmup=words.warmup,
        only=_listed(words.only, ";"),
        site=words.site,
        results=words.results,
        threads=words.threads,
        variants=tuple(words.variant),
        dry=words.dry,
        models=_listed(words.models, ","),
        megabytes=words.megabytes or Settings.megabytes,
        seq_lengths=tuple(_count_or_usage(text) for text in _listed(words.seq_lengths, ",")),
    )
    return words.suite, settings


def _count_or_usage(text: str) -> int:
    try:
        return _count(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--seq-lengths {error}") from error


def main(argv: list[str] | None = None) -> int:
    """Run one suite; return the exit code."""
    try:
        suite, settings = settings_of(argv)
        SUITES[suite](settings)
    except UsageError as error:
        report_error(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
