"""`trident data` beside the tokenizer alone and a plain script; its memory; small files; reading at random."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.commands import Measured, cores, run
from benchmarks.contenders.tokenising import write_sparse
from benchmarks.contest import load_average, written
from benchmarks.figures import paired, spread
from benchmarks.real_text import MEGABYTE, collected, write_document, write_files, write_lines
from benchmarks.record import table
from benchmarks.settings import Settings, check_known
from trainer.log import say

PARTS = ("speed", "memory", "files", "access", "audit", "epoch")
TRIDENT = "trident data"
ENCODERS: Mapping[str, bool] = {"encode_batch, its threads": False, "encode_batch, a process a core": True}
"""Ways of the tokenizer alone -> whether it has a process a core."""
SCRIPTS: Mapping[str, tuple[bool, bool]] = {
    "datasets.map, plain": (False, False),
    "datasets.map, batches": (False, True),
    "datasets.map, batches and a process a core": (True, True),
}
"""Scripts -> whether each has a process a core, and whether it maps batches of records."""
_MOST_ROUNDS = 5
_UNIQUE_BYTES = 150 * MEGABYTE
_VOCABULARY = 32_768
_SMALL_VOCABULARY = 1_024
"""Entries of the tokenizer for less than `_LARGE` megabytes of text."""
_LARGE = 20
_EPOCH_SAMPLES = 10**9
_EPOCH_LENGTH = 128
_READS = 20_000
_DEBUG_STEPS = 40


def data(settings: Settings) -> Path:
    """Measure the parts that `--only` names, or all, on so many megabytes of real text; ways take turns."""
    check_known(settings.only, PARTS, "--only", "part")
    parts = settings.only or PARTS
    before = load_average()
    body: dict[str, Any] = {"load_average_before": before, "megabytes": settings.megabytes, "cores": cores()}
    with tempfile.TemporaryDirectory(prefix="benchmark_data_") as folder:
        place = Place(Path(folder), settings.megabytes)
        measure: Mapping[str, Callable[[], Any]] = {
            "speed": lambda: speed(place, min(settings.rounds, _MOST_ROUNDS)),
            "memory": lambda: memory(place),
            "files": lambda: small_files(place),
            "access": lambda: access(place),
            "audit": lambda: audit(place),
            "epoch": lambda: epoch(place),
        }
        body["text"] = place.facts()
        for part in PARTS:
            if part in parts:
                body[part] = measure[part]()
                say(f"{part}: {json.dumps(body[part])[:400]}")
    return written("data", f"{settings.megabytes}mb", body, shown(body), settings)


class Place:
    """A folder with the text and the tokenizer of a run of this suite.

    Args:
        folder: an empty folder.
        megabytes: size of the text.
    """

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder = folder
        self.megabytes = megabytes
        self.texts = collected(min(_UNIQUE_BYTES, megabytes * MEGABYTE))
        self.tokenizer = folder / "tokenizer"
        self._runs = 0
        self._trained: tuple[Path, Path] | None = None
        _make_tokenizer(self.texts, self.tokenizer, _VOCABULARY if megabytes >= _LARGE else _SMALL_VOCABULARY)

    def facts(self) -> dict[str, int]:
        """Return the size of the text before it is repeated."""
        return {"unique_bytes": sum(len(text.encode()) for text in self.texts), "unique_documents": len(self.texts)}

    def prepare(self, source: Path, *words: str, looks_at_memory: bool = False) -> tuple[Measured, Path]:
        """Run `trident data` on a source with an empty cache; return what it took, and the cache."""
        self._runs += 1
        cache = self.folder / f"cache_{self._runs}"
        settings = [
            *("data=files", f"data.files=[{source}]", f"data.cache_dir={cache}"),
            *("tokenizer=pretrained", f"tokenizer.path={self.tokenizer}", *words),
        ]
        return run([sys.executable, "-m", "trainer", "data", *settings], looks_at_memory=looks_at_memory), cache

    def trained(self) -> tuple[Path, Path]:
        """Return the cache and the folder of a run of `gpt_debug` on half of the text, which is made once."""
        if self._trained is None:
            corpus, run_dir = self.folder / "trained.jsonl", self.folder / "run"
            write_lines(self.texts, corpus, self.megabytes * MEGABYTE // 2)
            _, cache = self.prepare(corpus)
            settings = [
                *("data=files", f"data.files=[{corpus}]", f"data.cache_dir={cache}"),
                *("tokenizer=pretrained", f"tokenizer.path={self.tokenizer}", "model=gpt_debug", "runtime.device=cpu"),
                *(f"train.steps={_DEBUG_STEPS}", "train.log_every=1", "checkpoint=none", f"run_dir={run_dir}"),
            ]
            run([sys.executable, "-m", "trainer", "train", *settings])
            self._trained = cache, run_dir
        return self._trained

    def program(self, name: str, *words: object) -> tuple[Measured, dict[str, Any]]:
        """Run one of the programs of `contenders/tokenising.py`; return what it took, and what it printed."""
        found = run([sys.executable, "-m", "benchmarks.contenders.tokenising", name, *map(str, words)])
        values: dict[str, Any] = json.loads(found.output.splitlines()[-1])
        return found, values


def _make_tokenizer(texts: Sequence[str], folder: Path, entries: int) -> None:
    from trainer.data.tokenizer import train_bpe

    folder.mkdir()
    train_bpe(texts, entries).save(folder)


def speed(place: Place, rounds: int) -> dict[str, Any]:
    """Time the whole command, the tokenizer alone over texts in memory, and scripts, in turns."""
    corpus = place.folder / "corpus.jsonl"
    size = write_lines(place.texts, corpus, place.megabytes * MEGABYTE)
    seconds: dict[str, list[float]] = {way: [] for way in (TRIDENT, *ENCODERS, *SCRIPTS)}
    for number in range(rounds):
        for way in [*seconds] if number % 2 == 0 else [*reversed(seconds)]:
            seconds[way].append(_turn(place, way, corpus))
            say(f"round {number + 1} of {rounds}: {way} {size / MEGABYTE / seconds[way][-1]:.2f} MB/s")
    return {
        "content_bytes": size,
        "ways": {
            way: {
                "seconds": found,
                "mb_per_second": spread([size / MEGABYTE / one for one in found]).to_dict(),
                "speed_of_trident": paired(seconds[TRIDENT], found).to_dict(),
            }
            for way, found in seconds.items()
        },
    }


def _turn(place: Place, way: str, corpus: Path) -> float:
    if way == TRIDENT:
        measured, cache = place.prepare(corpus)
        shutil.rmtree(cache)
        return measured.seconds
    if way in ENCODERS:
        processes = cores() if ENCODERS[way] else 1
        return float(place.program("encode_batch", corpus, place.tokenizer, processes)[1]["seconds"])
    out = place.folder / "mapped"
    on_all, in_batches = SCRIPTS[way]
    words = (corpus, place.tokenizer, out, cores() if on_all else 1, int(in_batches))
    measured, _ = place.program("map_script", *words)
    shutil.rmtree(out)
    return measured.seconds


def memory(place: Place) -> dict[str, Any]:
    """Measure the peak of `trident data` for a 20th, half and five times the text, and for one long document."""
    rows = []
    unit = place.megabytes * MEGABYTE
    for name, size, write in (
        ("lines", unit // 20, write_lines),
        ("lines", unit // 2, write_lines),
        ("lines", unit * 5, write_lines),
        ("one document", unit * 5 // 2, write_document),
    ):
        source = place.folder / ("source.jsonl" if write is write_lines else "source.txt")
        held = write(place.texts, source, size)
        measured, cache = place.prepare(source, looks_at_memory=True)
        rows.append({"what": name, "bytes": held, "peak_bytes": measured.peak_bytes, "seconds": measured.seconds})
        shutil.rmtree(cache)
        source.unlink()
    return {"rows": rows}


def small_files(place: Place) -> dict[str, Any]:
    """Time `trident data` on a folder of a thousand small files for each megabyte of the text."""
    folder = place.folder / "files"
    count = 1000 * place.megabytes
    size = write_files(place.texts, folder, count)
    measured, cache = place.prepare(folder, looks_at_memory=True)
    shutil.rmtree(folder)
    shutil.rmtree(cache)
    return {"files": count, "bytes": size, "seconds": measured.seconds, "peak_bytes": measured.peak_bytes}


def access(place: Place) -> dict[str, Any]:
    """Time samples at random places against the samples that training `gpt_debug` takes."""
    cache, run_dir = place.trained()
    manifest = next(cache.glob("*/manifest.json"))
    _, found = place.program("read_at_random", manifest.parent, _EPOCH_LENGTH, _READS)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    trained = [row["perf/tokens_per_second"] for row in rows[_DEBUG_STEPS // 2 :]]
    consumed = spread(trained).median / _EPOCH_LENGTH
    per_second = found["samples"] / found["seconds"]
    return {
        "sample_length": _EPOCH_LENGTH,
        "samples_per_second": per_second,
        "gpt_debug_samples_per_second": consumed,
        "times": per_second / consumed,
    }


def audit(place: Place) -> dict[str, Any]:
    """Time `trident data audit` of the run that was trained."""
    _, run_dir = place.trained()
    measured = run([sys.executable, "-m", "trainer", "data", "audit", str(run_dir)], looks_at_memory=True)
    return {"steps": _DEBUG_STEPS, "seconds": measured.seconds, "peak_bytes": measured.peak_bytes}


def epoch(place: Place) -> list[dict[str, Any]]:
    """Open an epoch of 1e9 samples over sparse files: whole sequences, and best-fit packing of synthetic lengths."""
    folder = place.folder / "epoch"
    write_sparse(folder, _EPOCH_LENGTH, _EPOCH_SAMPLES)
    found = [
        place.program("open_epoch", folder, _EPOCH_LENGTH, _EPOCH_SAMPLES, packing)[1]
        for packing in ("cut", "best_fit")
    ]
    shutil.rmtree(folder)
    return found


def shown(body: Mapping[str, Any]) -> str:
    """Return the tables of the parts that were measured."""
    texts = []
    if "speed" in body:
        rows = []
        for way, found in body["speed"]["ways"].items():
            rate, ratio = found["mb_per_second"], found["speed_of_trident"]
            rows.append(
                [
                    way,
                    f"{rate['median']:.2f} ({rate['least']:.2f} .. {rate['most']:.2f})",
                    f"{ratio['median']:.2f} ({ratio['least']:.2f} .. {ratio['most']:.2f})",
                ]
            )
        texts.append(table(rows, ["way", "MB/s, median (range)", "trident data is so many times as fast"]))
    if "memory" in body:
        rows = [
            [
                row["what"],
                f"{row['bytes'] / MEGABYTE:,.1f}",
                f"{row['peak_bytes'] / 2**20:,.0f}",
                f"{row['seconds']:.1f}",
            ]
            for row in body["memory"]["rows"]
        ]
        texts.append(table(rows, ["input of trident data", "MB", "peak of all processes, MiB", "seconds"]))
    if "files" in body:
        found = body["files"]
        rate = found["files"] / found["seconds"]
        texts.append(
            f"{found['files']:,} files of {found['bytes'] / found['files']:,.0f} bytes: {found['seconds']:.1f} s, "
            f"{rate:,.0f} files/s, peak {found['peak_bytes'] / 2**20:,.0f} MiB"
        )
    if "access" in body:
        found = body["access"]
        texts.append(
            f"random access: {found['samples_per_second']:,.0f} samples/s of {found['sample_length']} tokens, "
            f"{found['times']:,.0f} times what gpt_debug takes ({found['gpt_debug_samples_per_second']:,.0f})"
        )
    if "epoch" in body:
        texts += [
            f"an epoch of {found['samples']:,} samples, packing {found['packing']}: open in "
            f"{found['open_seconds'] * 1e3:,.1f} ms with "
            f"{found['bytes'] / 2**20:,.1f} MiB; 1,000 samples of it in {found['read_seconds'] * 1e3:,.1f} ms"
            for found in body["epoch"]
        ]
    if "audit" in body:
        found = body["audit"]
        texts.append(
            f"trident data audit of {found['steps']} steps: {found['seconds']:.1f} s, peak "
            f"{found['peak_bytes'] / 2**20:,.0f} MiB"
        )
    return "\n\n".join(texts)
