"""`trident import` and `trident export` of a large model: time beside a copy of its files, and peak memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.case import CPU, TINY, Case
from benchmarks.contest import load_average, written
from benchmarks.figures import spread
from benchmarks.record import table
from benchmarks.settings import Settings
from trainer.log import say

GIB = 1 << 30
_LARGE = replace(
    CPU,
    name="cpu_1.3b",
    hidden_size=2048,
    num_layers=24,
    num_heads=16,
    ffn_hidden_size=8192,
    seq_length=2048,
    vocab_size=50257,
)
"""GPT-2's architecture, whose matrices transformers keeps transposed: no tensor can be copied as it is."""
_MOST_ROUNDS = 3
COPY = "shutil.copy"


@dataclass(frozen=True)
class _Turn:
    seconds: float
    cpu_seconds: float
    """Time of processors, whatever else the machine did."""
    peak_bytes: int
    """Resident memory of the process at most; 0 for the copy, which is made in this one."""


def interchange(settings: Settings) -> Path:
    """Measure both commands and a copy, in turns, with random weights in fp32."""
    before = load_average()
    case = _LARGE if settings.case.name == "cpu" else settings.case
    rounds = min(settings.rounds, _MOST_ROUNDS)
    with tempfile.TemporaryDirectory(prefix="benchmark_models_") as folder:
        place = Path(folder)
        # In a process of its own: the kernel counts what this one holds as the peak of those that it starts.
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:
            facts = apart.submit(make_source, case, place / "source").result()
            apart.submit(make_source, replace(TINY, family=case.family), place / "tiny").result()
        floors = _turns(place, place / "tiny", 1)
        turns = _turns(place, place / "source", rounds)
    values = [_values(name, found, turns[COPY], floors[name][0], facts) for name, found in turns.items()]
    body = {"load_average_before": before, "rounds": rounds, "case": case.to_dict(), **facts, "ways": values}
    return written("interchange", case.name, body, _table(values), settings)


def make_source(case: Case, folder: Path) -> dict[str, int]:
    """Write a folder as transformers does, tensor by tensor; return its sizes in bytes."""
    import torch

    from trainer.checkpoint.container import ContainerWriter
    from trainer.config.compose import compose
    from trainer.config.hf_export import exported_config, express
    from trainer.interchange.linked_names import sections_of
    from trainer.interchange.weight_index import SINGLE

    said = express(compose(case.overrides()).model, case.vocab_size, {})
    shapes: dict[str, int | tuple[int, ...]] = {}
    for name, link in said.family.links_of(said.values, list(said.model.tensors)).items():
        tensor = said.model.tensors[name]
        shapes |= dict(zip(link.theirs, link.shapes(tensor.shape, sections_of(tensor)), strict=True))
    folder.mkdir()
    writer = ContainerWriter(folder / SINGLE, shapes, {"format": "pt"})
    generator = torch.Generator().manual_seed(case.seed)
    largest = 0
    for shape in shapes.values():
        values = 0.02 * torch.randn(shape, generator=generator)
        largest = max(largest, values.numel() * values.element_size())
        writer.append(values)
    size = writer.finish().size_bytes
    (folder / "config.json").write_text(json.dumps(exported_config(said, "float32", {}, None)))
    return {
        "parameters": said.model.parameter_count,
        "file_bytes": size,
        "largest_tensor_bytes": largest,
        "largest_layer_bytes": 4 * max(layer.parameter_count for layer in said.model.layers),
    }


def _turns(place: Path, source: Path, rounds: int) -> dict[str, list[_Turn]]:
    run, out, copy = place / "run", place / "out", place / "copy"
    ways: dict[str, Callable[[], _Turn]] = {
        COPY: lambda: _copied(source, copy),
        "trident import": lambda: _command("import", str(source), str(run), "check=false"),
        "trident export": lambda: _command("export", str(run), str(out), "check=false", "--dtype", "fp32"),
    }
    found: dict[str, list[_Turn]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way())
            say(f"{source.name}: {name} took {found[name][-1].seconds:.1f} s")
        for made in (run, out, copy):
            shutil.rmtree(made)
    found["trident import, logits compared"] = [_command("import", str(source), str(run))]
    found["trident export, logits compared"] = [_command("export", str(run), str(out), "--dtype", "fp32")]
    shutil.rmtree(run)
    shutil.rmtree(out)
    return found


def _copied(source: Path, target: Path) -> _Turn:
    """Copy, and wait until the copy is on the disk, as both commands do."""
    begun, before = time.perf_counter(), time.process_time()
    target.mkdir()
    for path in source.iterdir():
        shutil.copy(path, target)
        with (target / path.name).open("rb") as file:
            os.fsync(file.fileno())
    return _Turn(time.perf_counter() - begun, time.process_time() - before, 0)


def _command(*words: str) -> _Turn:
    """Run a verb as users do; its peak is what the kernel says of the process."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "trainer", *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"trident {words[0]} must end well, but its exit code is {process.returncode}")
    return _Turn(time.perf_counter() - begun, used.ru_utime + used.ru_stime, 1024 * used.ru_maxrss)


def _values(
    name: str, turns: Sequence[_Turn], copies: Sequence[_Turn], floor: _Turn, facts: dict[str, int]
) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": name,
        "seconds": spread([turn.seconds for turn in turns]).to_dict(),
        "cpu_seconds": spread([turn.cpu_seconds for turn in turns]).to_dict(),
        "times_copy": spread(
            [turn.seconds / copy.seconds for turn, copy in zip(turns, copies, strict=False)]
        ).to_dict(),
    }
    if name != COPY:
        peak = max(turn.peak_bytes for turn in turns)
        values |= {
            "peak_bytes": peak,
            "floor_bytes": floor.peak_bytes,
            "above_largest_tensor_bytes": peak - facts["largest_tensor_bytes"],
        }
    return values


def _table(ways: Sequence[dict[str, Any]]) -> str:
    rows = []
    for one in ways:
        seconds, times = one["seconds"], one["times_copy"]
        memory = ["peak_bytes", "above_largest_tensor_bytes", "floor_bytes"]
        rows.append(
            [
                one["name"],
                f"{seconds['median']:.1f} ({seconds['least']:.1f} .. {seconds['most']:.1f})",
                f"{times['median']:.2f}" if one["name"] != COPY else "1",
                f"{one['cpu_seconds']['median']:.1f}",
                *(f"{one[key] / GIB:.2f}" if key in one else "-" for key in memory),
            ]
        )
    head = ["way", "seconds, median (range)", "of a copy", "of processors", "peak, GiB", "above the largest tensor"]
    return table(rows, [*head, "of a tiny model"])
