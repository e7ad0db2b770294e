"""The health of NVIDIA GPUs, as their driver tells it through nvidia-smi. No torch, no CUDA library."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from trainer.doctor.asking import ask
from trainer.doctor.finding import Check, Finding, fail, ok, skip, warn
from trainer.doctor.surroundings import Surroundings

_QUERY_S = 30.0
_BUSY_MIB = 1024
"""Memory in use from which on another program is thought to compute on a GPU."""
_RETIRE = "have it replaced: nvidia-smi's counts stay until then"
_SLOWED: Mapping[str, tuple[str, str]] = {
    "hw_slowdown": ("its hardware slows it down", "look at its cooling and its power cable"),
    "hw_thermal_slowdown": ("it is too hot and slows down", "look at its cooling"),
    "sw_thermal_slowdown": ("it is hot and slows down", "look at its cooling"),
    "hw_power_brake_slowdown": ("its power supply slows it down", "look at the power supplies of the machine"),
}


def look_at_gpus(around: Surroundings) -> Iterator[Finding]:
    """Ask the driver for everything that it knows, and look for what ends a run or makes it slow."""
    name = "GPUs"
    if not around.gpus:
        yield skip(name, "this machine shows no NVIDIA GPU")
        return
    judge = fail if around.on_gpus else warn
    if shutil.which("nvidia-smi", path=around.environ.get("PATH")) is None:
        yield judge(
            name,
            f"there are {around.gpus}, but nvidia-smi is not on PATH, so nothing can be told of them",
            "install the driver's tools; in a container: `docker run --gpus all`",
        )
        return
    answer = ask(["nvidia-smi", "-q", "-x"], _QUERY_S, around.environ)
    if not answer.is_good:
        yield judge(
            name,
            f"their driver does not answer: {answer.told}",
            "load the driver of this kernel (`modprobe nvidia`), or start the machine again; `dmesg | grep -i xid`",
        )
        return
    try:
        log = ElementTree.fromstring(answer.out)
    except ElementTree.ParseError as error:
        yield judge(name, f"the answer of nvidia-smi cannot be read: {error}", "`nvidia-smi -q -x` shows it")
        return
    gpus = log.findall("gpu")
    problems = [problem for index, gpu in enumerate(gpus) for problem in _problems(f"GPU {index}", gpu)]
    if len(gpus) < around.gpus:
        problems.insert(
            0,
            fail(
                name,
                f"the kernel shows {around.gpus}, but the driver answers for {len(gpus)}: one may be lost",
                "`dmesg | grep -i xid` says why; start the machine again",
            ),
        )
    yield from problems
    if not problems:
        names = sorted({_text(gpu, "product_name") for gpu in gpus})
        version = _text(log, "driver_version")
        yield ok(name, f"{len(gpus)} x {', '.join(names)}, driver {version}: no error on record, none is slowed down")


def _problems(name: str, gpu: Element) -> Iterator[Finding]:
    title = f"{_text(gpu, 'product_name')} ({gpu.get('id', '')})"
    wrong = sum(_number(node.text) for node in gpu.findall("ecc_errors/volatile/*") if _is_uncorrectable(node.tag))
    if wrong:
        yield fail(
            name,
            f"{title} counts {wrong} memory errors since the driver started that it could not correct",
            "`nvidia-smi --gpu-reset` when nothing uses it; if they come back, " + _RETIRE,
        )
    if _text(gpu, "remapped_rows/remapped_row_failure") == "Yes":
        yield fail(name, f"{title} has no spare rows of memory left", _RETIRE)
    elif "Yes" in (_text(gpu, "remapped_rows/remapped_row_pending"), _text(gpu, "retired_pages/pending_retirement")):
        yield warn(name, f"{title} waits to put a damaged part of its memory out of use", "`nvidia-smi --gpu-reset`")
    reasons = gpu.find("clocks_event_reasons")
    reasons = gpu.find("clocks_throttle_reasons") if reasons is None else reasons
    for reason in [] if reasons is None else reasons:
        known = _SLOWED.get(reason.tag.removeprefix("clocks_event_reason_").removeprefix("clocks_throttle_reason_"))
        if known is not None and (reason.text or "").strip() == "Active":
            yield warn(name, f"{title}: {known[0]}", known[1])
    mode = _text(gpu, "compute_mode")
    if mode == "Prohibited":
        yield fail(name, f"{title} lets nobody compute (compute mode {mode})", "`nvidia-smi --compute-mode=0` as root")
    width, widest = (_text(gpu, f"pci/pci_gpu_link_info/link_widths/{one}") for one in _WIDTHS)
    if _number(width.rstrip("x")) and _number(width.rstrip("x")) < _number(widest.rstrip("x")):
        yield warn(name, f"{title} has {width} of {widest} lanes to the machine", "seat it anew, or use another slot")
    limit, usual = (_text(gpu, f"gpu_power_readings/{one}") for one in _POWERS)
    if 0 < _watts(limit) < 0.95 * _watts(usual):
        yield warn(
            name, f"{title} may take {limit} of {usual}", f"`nvidia-smi --power-limit={_watts(usual):.0f}` as root"
        )
    fabric = _text(gpu, "fabric/state")
    if fabric and fabric not in ("Completed", "N/A"):
        yield fail(
            name,
            f"{title} waits for the fabric of its machine's GPUs ({fabric}), without which CUDA does not start",
            "`systemctl start nvidia-fabricmanager`",
        )
    used = _number(_text(gpu, "fb_memory_usage/used").split(" ")[0])
    if used > _BUSY_MIB:
        yield warn(name, f"{title} has {used:,} MiB in use already", "`nvidia-smi` shows who; end it, or leave it out")


_WIDTHS = ("current_link_width", "max_link_width")
_POWERS = ("current_power_limit", "default_power_limit")


def _is_uncorrectable(tag: str) -> bool:
    return tag.endswith("uncorrectable") or "uncorrectable_" in tag


def _text(element: Element, path: str) -> str:
    found = element.find(path)
    return "" if found is None or found.text is None else found.text.strip()


def _number(text: str | None) -> int:
    """Return a count; 0 for N/A and for what is not there."""
    return int(text) if text is not None and text.strip().isdecimal() else 0


def _watts(text: str) -> float:
    try:
        return float(text.split(" ")[0])
    except ValueError:
        return 0.0


CHECKS = (Check("GPUs", "GPUs", look_at_gpus, _QUERY_S + 5.0),)
"""Checks of this file."""
