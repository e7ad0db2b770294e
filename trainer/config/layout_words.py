"""A layout is spelled, not looked up: `layout=tp4_pp2_dp8_sp`. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainer.config.schema import LayoutConfig, PipelineSchedule
from trainer.errors import ConfigError

LAYOUT = "layout"
ALONE = "single"
AUTO = "auto"
EXAMPLES = ("auto", "single", "dp2", "tp2", "tp2_sp", "pp2", "pp2_dualpipev", "tp2_pp2_dp2", "tp4_pp2_dp8_sp")
"""A few of the spellings, for completion and help."""
GRAMMAR = (
    ("tpN", "N tensor-parallel ranks split every layer."),
    ("ppN", "N pipeline stages."),
    ("dpN", "N replicas; without it they fill the ranks that a launcher started (one, without a launcher)."),
    ("sp", "Sequence parallelism: the tensor-parallel ranks split norms and residuals over the sequence."),
    ("dualpipev", "The DualPipeV schedule, for at least 2 x pp micro-batches."),
    (ALONE, "One rank holds the whole model."),
    (AUTO, "The fastest layout that fits, as `trident plan --search` finds it on these machines."),
)
"""Parts of a spelling, each with its meaning."""
_SIZES = {"tp": "tensor_parallel_size", "pp": "pipeline_parallel_size", "dp": "data_parallel_size"}
_FLAGS: dict[str, tuple[str, object]] = {
    "sp": ("sequence_parallel", True),
    "dualpipev": ("pipeline_schedule", "dualpipev"),
}
_PART = re.compile(rf"({'|'.join(_SIZES)})(0|[1-9][0-9]*)|({'|'.join(_FLAGS)})")
RULE = "write tpN, ppN, dpN, sp and dualpipev, each at most once, in any order, joined by _, or single, or auto"
"""The rule of how a layout is written, as a phrase."""


def spelled_layout(name: str) -> dict[str, object] | None:
    """Return the keys of `layout` that a spelling gives, or None if `name` spells no layout.

    Args:
        name: such as `tp4_pp2_dp8_sp`: sizes and flags in any order, joined by underscores; or `single`.

    Raises:
        ConfigError: it names an axis twice, or gives a size of 0.
    """
    keys: dict[str, object] = {
        "pipeline_parallel_size": 1,
        "tensor_parallel_size": 1,
        "data_parallel_size": None,
        "sequence_parallel": False,
        "pipeline_schedule": "1f1b",
        "auto": name == AUTO,
    }
    if name in (ALONE, AUTO):
        return keys
    matches = [_PART.fullmatch(part) for part in name.split("_")]
    named: list[str] = []
    for match in matches:
        if match is None:
            return None
        axis, size, flag = match.groups()
        if (axis or flag) in named:
            raise ConfigError(f"layout={name} must name each part once, but names {axis or flag} twice; {RULE}")
        if size is not None and int(size) == 0:
            raise ConfigError(f"layout={name} must have sizes of at least 1, but has {axis}{size}; {RULE}")
        named.append(axis or flag)
        key, value = _FLAGS[flag] if flag else (_SIZES[axis], int(size))
        keys[key] = value
    return keys


def spelled(layout: LayoutConfig) -> str:
    """Return the spelling of a layout, all but its stage boundaries: `tp4_pp2_dp8_sp`."""
    sizes = {
        "tp": layout.tensor_parallel_size,
        "pp": layout.pipeline_parallel_size,
        "dp": layout.data_parallel_size if isinstance(layout.data_parallel_size, int) else 1,
    }
    parts = [f"{axis}{size}" for axis, size in sizes.items() if size > 1]
    flags = {"sp": layout.sequence_parallel, "dualpipev": layout.pipeline_schedule is PipelineSchedule.dualpipev}
    return "_".join([*parts, *(name for name, is_set in flags.items() if is_set)]) or ALONE


def continuations(typed: str) -> Iterator[str]:
    """Yield spellings that a word can still become: the word itself, and with one part more."""
    if _is_spelled(typed):
        yield typed
    begun, _, last = typed.rpartition("_")
    if begun in ("", ALONE, AUTO) or not _is_spelled(begun):
        return
    for part in ("tp2", "pp2", "dp2", *_FLAGS):
        if part.startswith(last) and part != last and _is_spelled(f"{begun}_{part}"):
            yield f"{begun}_{part}"


def near_spelling(typed: str) -> str:
    """Return the layout that a word nearly spells, as a phrase, or ''.

    Args:
        typed: the word in lower case, with underscores for hyphens and blanks.
    """
    bare = re.sub(r"tensor|model_?parallel|mp(?=\d)", "tp", typed)
    bare = re.sub(r"pipe(line)?(?=_?\d)", "pp", re.sub(r"data(?=_?\d)", "dp", bare))
    found = re.findall(r"(tp|pp|dp|sp|cp|ep|dualpipev|dualpipe|single)_?(\d*)", bare)
    if not found or "".join(axis + size for axis, size in found) != re.sub(r"[_x,+]", "", bare):
        return ""
    if any(axis in ("cp", "ep") for axis, _ in found):
        return "only pp, tp and dp are available, and sp beside tp"
    meant = "_".join(axis.replace("dualpipe", "dualpipev").replace("vv", "v") + size for axis, size in found)
    return f"did you mean layout={meant}?" if _is_spelled(meant) else RULE


def _is_spelled(name: str) -> bool:
    try:
        return spelled_layout(name) is not None
    except ConfigError:
        return False


def described(name: str) -> Iterator[tuple[str, str]]:
    """Yield each part of a spelling with its meaning."""
    meanings = dict(GRAMMAR)
    for part in name.split("_"):
        head = part.rstrip("0123456789")
        size = part[len(head) :]
        key = f"{head}N" if size else head
        text = meanings[key].partition("; without")[0].rstrip(".") + "."
        text = text.replace("N ", f"{size} ", 1) if size else text
        yield part, text.replace("ranks split", "rank splits").replace("s.", ".") if size == "1" else text
