"""The one screen of `trident plan`, as lines of text. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from trainer.config.model_title import model_title
from trainer.config.schema import TridentConfig
from trainer.config.words import for_a_shell
from trainer.planner.budget import Answer
from trainer.planner.cluster import Cluster
from trainer.planner.layout_search import Found, Search
from trainer.planner.offers import change
from trainer.planner.plan_report import PlanReport
from trainer.planner.prediction import GIB, LossBand, Prediction, StageMemory
from trainer.planner.scaling_laws import DEFAULT_LAW, LLAMA3

WIDTH = 100
BAR = 44
FEW_STAGES = 8
SAFE, TIGHT = 0.80, 0.94
"""Shares of the memory below which a run is safe, and above which it is at risk.

80 %: no run of 454 ran out of memory below it (arXiv 2411.06465); 94 %: the share that SimuMax counts with.
"""
_LETTERS = {
    "weights": "W",
    "gradients": "G",
    "master": "M",
    "moments": "O",
    "activations": "A",
    "working": "w",
    "loss": "L",
    "buckets": "B",
    "gathered": "g",
    "overhead": "x",
}
_TITLES = {
    "gemm": "matrix multiplications",
    "attention": "attention",
    "elementwise": "element-wise work, loss",
    "recompute": "recomputation",
    "launch": "launches, Python",
    "tensor_parallel": "tensor-parallel exchange",
    "pipeline": "messages between stages",
    "data_parallel": "data-parallel exchange",
    "bubble": "bubble",
    "optimizer": "optimizer",
    "offload": "offload",
}


def screen(report: PlanReport) -> str:
    """Return the report of one run, 100 columns wide."""
    parts = (header, verdict, _memory, _time, _speed, _run, _loss, _changes, _confidence)
    return "\n\n".join("\n".join(part(report)) for part in parts)


def header(report: PlanReport) -> list[str]:
    """Return the lines of the model, the cluster, the layout and the batch."""
    plan, cluster = report.plan, report.cluster
    machines = f"{cluster.nodes} machine{'s' * (cluster.nodes > 1)} x {cluster.devices_per_node} {cluster.device}"
    rounds = f"{plan.num_micro_batches:,} micro-batch{'es' * (plan.num_micro_batches > 1)}"
    links = f"{cluster.intra_node.value / 1e9:,.0f} GB/s inside, {cluster.inter_node.value / 1e9:,.3g} GB/s between"
    return [
        f"model    {model_title(report.found.config.model)}: {_count(plan.model.parameter_count)} parameters, "
        f"{len(plan.model.blocks)} blocks of {plan.model.hidden_size}, sequences of {plan.execution.seq_length:,}, "
        f"{report.tokens / plan.model.parameter_count:,.1f} tokens a parameter",
        f"cluster  {machines}, {links}, software {cluster.software.value}",
        f"layout   {' '.join(map(for_a_shell, report.found.words))}",
        f"batch    {plan.global_batch_size:,} sequences = {plan.tokens_per_step:,} tokens a step, "
        f"{rounds} of {plan.micro_batch_size} a rank, {plan.dtype.value}",
    ]


def verdict(report: PlanReport) -> list[str]:
    """Return whether the run fits, and where it is fullest."""
    found = report.prediction
    share, margin = found.peak / found.device_bytes, (found.device_bytes - found.peak) / GIB
    where = f"fullest is stage {found.fullest}" if len(found.stages) > 1 else "a device holds"
    sizes = f"{where}: {found.peak / GIB:,.2f} of {found.device_bytes / GIB:,.2f} GiB ({share:.0%})"
    word = "FITS" if found.fits else "MAY NOT FIT" if found.may_fit else "DOES NOT FIT"
    if found.peak > found.device_bytes:
        error = f", but less than the error of +-{found.confidence.memory:.0%}" if found.may_fit else ""
        lines = [f"{word}  {sizes}, {-margin:,.2f} GiB too much{error}"]
    else:
        safety = "" if share <= SAFE else ", tight" if share <= TIGHT else ", at risk: fragments may take the rest"
        lines = [f"{word}  {sizes}, margin {margin:,.2f} GiB{safety}"]
    if found.host_needed:
        limit = "" if found.host_bytes is None else f" of {found.host_bytes / GIB:,.1f}"
        lines.append(f"      host memory for offload: {found.host_needed / GIB:,.2f}{limit} GiB a machine")
    return lines


def _memory(report: PlanReport) -> Iterator[str]:
    found = report.prediction
    names = [name for name in _LETTERS if any(stage.by_purpose[name] for stage in found.stages)]
    yield "memory of a device at the fullest moment of backward, GiB"
    legend = "  ".join(f"{_LETTERS[name]} {name}" for name in names)
    yield f"         {legend}"
    for index in _shown_stages(found.stages):
        if index is None:
            yield "         ..."
            continue
        stage = found.stages[index]
        bar = _bar(stage, names, max(found.device_bytes, found.peak))
        yield f"stage {index:<3}|{bar}| {stage.peak / GIB:7.2f}  {stage.in_flight} in flight"
    fullest = found.stages[found.fullest]
    shown = ", ".join(f"{name} {fullest.by_purpose[name] / GIB:,.2f}" for name in names)
    yield from _wrapped(f"stage {found.fullest}:  {shown}")
    # The start of other software is not modelled.
    start = f"at the start {fullest.init_peak / GIB:,.2f}, " if fullest.init_peak else ""
    yield (
        f"         {start}in backward {fullest.backward / GIB:,.2f}, "
        f"in the optimizer step {fullest.step_peak / GIB:,.2f}"
    )


def _shown_stages(stages: Sequence[StageMemory]) -> list[int | None]:
    if len(stages) <= FEW_STAGES:
        return list(range(len(stages)))
    fullest = max(range(len(stages)), key=lambda index: stages[index].peak)
    kept = sorted({0, 1, 2, fullest, len(stages) - 2, len(stages) - 1})
    shown: list[int | None] = []
    for before, index in zip([-1, *kept], kept, strict=False):
        shown += [None] * (index > before + 1) + [index]
    return shown


def _bar(stage: StageMemory, names: Sequence[str], whole: int) -> str:
    """Return a bar of letters; what the start or the optimizer step need besides is dotted."""
    drawn, total = "", 0
    for name in names:
        total += stage.by_purpose[name]
        drawn += _LETTERS[name] * (round(BAR * total / whole) - len(drawn))
    drawn += "." * (round(BAR * stage.peak / whole) - len(drawn))
    return drawn[:BAR].ljust(BAR)


def _time(report: PlanReport) -> Iterator[str]:
    found = report.prediction.time
    yield f"a step   {_seconds(found.total)}"
    for name, value in sorted(found.by_part.items(), key=lambda item: -item[1]):
        if value > 0.0005 * found.total:
            share = value / found.total
            yield f"  {_TITLES[name]:<26}{_seconds(value):>10}  {share:6.1%}  {'#' * round(BAR * share)}"
    if found.data_parallel_hidden > 0.0005 * found.total:
        yield f"  {'hidden behind backward':<26}{_seconds(found.data_parallel_hidden):>10}  (data-parallel exchange)"


def _speed(report: PlanReport) -> Iterator[str]:
    found, world = report.prediction, report.plan.world_size
    yield (
        f"speed    {found.tokens_per_second:,.0f} tokens/s, {found.tokens_per_second / world:,.0f} a device, "
        f"{found.tflops_per_gpu:,.2f} TFLOP/s a device"
    )
    mfu = "not known: the device has no peak for this format in the table" if found.mfu is None else f"{found.mfu:.1%}"
    hfu = "" if found.hfu is None else f", HFU {found.hfu:.1%} with what is computed again"
    yield f"         MFU {mfu}{hfu} (PaLM's convention: attention over all keys)"
    if report.plan.uses_pipeline_engine:
        yield f"         bubble {found.bubble_fraction:.1%} of a step, schedule {report.plan.schedule.kind.value}"


def _run(report: PlanReport) -> Iterator[str]:
    price = report.price
    money = "no price is set (cluster.usd_per_device_hour)" if price.cost_usd is None else f"${price.cost_usd:,.0f}"
    yield (
        f"run      {report.plan.steps:,} steps, {_count(report.tokens)} tokens: {_days(price.seconds)}, "
        f"{price.gpu_days:,.4g} device-days, {price.pf_days:,.4g} PF-days, {money}, {price.energy_kwh:,.4g} kWh"
    )


def _loss(report: PlanReport) -> Iterator[str]:
    bands = _bands(report.losses)
    yield f"loss     {bands[0]}"
    yield f"         {'; '.join(bands[1:])}"
    yield "         of the laws' own data and tokenizers: compare sizes by it, do not expect it"
    best = report.balance.optimum
    yield (
        f"         {report.balance.words} under {DEFAULT_LAW}: its best for this compute is "
        f"{_count(best.parameters)} parameters and {_count(best.tokens)} tokens"
    )
    theirs = LLAMA3.optimum(best.flops)
    yield f"         Llama 3's line says {_count(theirs.parameters)} parameters and {_count(theirs.tokens)} tokens"


def _bands(losses: Mapping[str, LossBand]) -> list[str]:
    return [f"{name} {band.value:.3f} ({band.low:.3f} to {band.high:.3f})" for name, band in losses.items()]


def _changes(report: PlanReport) -> Iterator[str]:
    config = report.found.config
    for index, found in enumerate(report.fitting):
        yield f"{'fits' if index == 0 else '':<9}{change(found, config)}"
    if report.fitting:
        return
    if not report.prediction.fits:
        surely = "surely " * report.prediction.may_fit
        yield f"fits     no layout of this model and batch {surely}fits on these devices"
    elif report.faster is not None:
        gain = report.faster.prediction.tokens_per_second / report.prediction.tokens_per_second
        yield f"faster   {change(report.faster, config)}, {gain:.2f} times as fast"
    else:
        yield "faster   nothing near it: see `trident plan --search` for all layouts"


def _confidence(report: PlanReport) -> Iterator[str]:
    found = report.prediction.confidence
    largest = max(report.prediction.time.by_part.items(), key=lambda item: item[1])[0]
    yield from _wrapped(
        f"sure     time +-{found.step_time:.0%}, memory +-{found.memory:.0%} ({found.reason}); most of the time is "
        f"{_TITLES[largest]}"
    )
    for fact in found.outside:
        yield from _wrapped(f"unsure   {fact}")


def spent_screen(answer: Answer, cluster: Cluster, words: Sequence[str]) -> str:
    """Return what a budget buys: model, tokens, layout, loss.

    Args:
        answer: what was found.
        cluster: the machines.
        words: the words of the run that was asked for, behind which those of the answer are pasted.
    """
    best, price = answer.best, answer.price
    mfu = "" if best.speed.mfu is None else f", MFU {best.speed.mfu:.1%}"
    money = "" if price.cost_usd is None else f", ${price.cost_usd:,.0f}"
    bands = _bands(answer.losses)
    lines = [
        f"budget   {answer.budget} on {best.speed.devices} {cluster.device}",
        f"model    {_count(best.candidate.parameters)} parameters, {_count(best.tokens)} tokens in {best.steps:,} "
        f"steps: {answer.balance.words} under {DEFAULT_LAW}",
        f"speed    {best.speed.tokens_per_second:,.0f} tokens/s{mfu}",
        f"run      {_days(price.seconds)}, {price.gpu_days:,.4g} device-days{money}, {price.energy_kwh:,.4g} kWh",
        f"loss     {bands[0]}",
        f"         {'; '.join(bands[1:])}",
        f"words    {' '.join(map(for_a_shell, (*words, *answer.overrides)))}",
    ]
    if answer.is_held_back_by_memory:
        lines.append("         a larger model would be better, but no layout of it fits on these devices")
    return "\n".join(lines)


def search_screen(found: Search, config: TridentConfig, seconds: float) -> str:
    """Return the table of a search, with overrides that are pasted behind `config`."""
    layouts = f"{found.considered:,} legal layout{'s' * (found.considered != 1)}"
    lines = [f"{layouts}, {found.fitting:,} fit, {seconds:.1f} s", ""]
    if not found.ranked:
        if found.least is not None:
            surely = "surely " * found.least.prediction.may_fit
            lines.append(f"none {surely}fits; least memory: {change(found.least, config)}")
        else:
            lines.append("there is no legal layout: the batch and the model divide over no mesh of these devices")
        return "\n".join(lines)
    lines += ["fastest", *_table(found.ranked, config)]
    lines += ["", "less memory for less speed (Pareto front)", *_table(found.pareto, config)]
    return "\n".join(lines)


def _table(rows: Sequence[Found], config: TridentConfig) -> Iterator[str]:
    yield f"{'tokens/s':>12} {'step':>10} {'GiB':>8} {'bubble':>7} {'MFU':>6}  overrides"
    for one in rows:
        found: Prediction = one.prediction
        mfu = "" if found.mfu is None else f"{found.mfu:.1%}"
        words = " ".join(map(for_a_shell, one.words_after(config)))
        yield (
            f"{found.tokens_per_second:>12,.0f} {_seconds(found.time.total):>10} {found.peak / GIB:>8.2f} "
            f"{found.bubble_fraction:>7.1%} {mfu:>6}  {words}"
        )


def _wrapped(text: str) -> Iterator[str]:
    import textwrap

    yield from textwrap.wrap(text, WIDTH, subsequent_indent=" " * 9, break_long_words=False, break_on_hyphens=False)


def _seconds(value: float) -> str:
    if value < 1e-3:
        return f"{1e6 * value:.0f} us"
    return f"{1e3 * value:.1f} ms" if value < 1 else f"{value:,.2f} s"


def _days(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:,.1f} days"


def _count(number: float) -> str:
    """Return a number with three digits and a letter: 1.31B."""
    for size, letter in ((1e15, "Q"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
