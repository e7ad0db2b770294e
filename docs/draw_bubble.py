"""Draw docs/bubble.svg: waiting in pipelines as `python -m benchmarks bubble` measured it, and as simulated.

usage: python docs/draw_bubble.py [RESULT.json] [--check]
  RESULT.json  a record of that benchmark; without it the one that the drawing names
  --check      write nothing; exit 1 if the file is not what would be drawn
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("bubble.svg")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
COLUMNS = 3
WIDTH, HEIGHT = 250, 150
LEFT, TOP = 62, 92
GAP_X, GAP_Y = 50, 86
MOST = 0.8
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .small { font-size: 11px; fill: #59636e; }
  .axis { stroke: #59636e; stroke-width: 1; }
  .grid { stroke: #d1d9e0; stroke-width: 1; }
  .simulated { fill: none; stroke: #0969da; stroke-width: 2; }
  .measured { fill: #bc4c00; }
  .range { stroke: #bc4c00; stroke-width: 1.5; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; } .small { fill: #9198a1; } .axis { stroke: #9198a1; } .grid { stroke: #3d444d; }
    .simulated { stroke: #4493f8; } .measured { fill: #db6d28; } .range { stroke: #db6d28; }
  }
"""


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    label = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{label}>{words}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" class="{kind}"/>'


class Panel:
    """One pipeline: its share of waiting over the micro-batches of a step."""

    def __init__(self, number: int, pipeline: Mapping[str, Any]) -> None:
        self._x = LEFT + number % COLUMNS * (WIDTH + GAP_X)
        self._y = TOP + number // COLUMNS * (HEIGHT + GAP_Y)
        self._pipeline = pipeline

    def _at(self, micro_batches: int, share: float) -> tuple[float, float]:
        return round(self._x + WIDTH * micro_batches / 17, 1), round(self._y + HEIGHT * (1 - share / MOST), 1)

    def parts(self) -> Iterator[str]:
        """Yield what is drawn."""
        bubbles: Sequence[Mapping[str, Any]] = self._pipeline["bubbles"]
        yield _text(self._x, self._y - 12, self._pipeline["name"], anchor="start")
        for tenths in range(0, 9, 2):
            _, y = self._at(0, tenths / 10)
            yield _line(self._x, y, self._x + WIDTH, y, "grid" if tenths else "axis")
            yield _text(self._x - 8, y + 4, f"{10 * tenths} %", "small", "end")
        for count in (1, 2, 4, 8, 12, 16):
            x, bottom = self._at(count, 0)
            yield _line(x, bottom, x, bottom + 4, "axis")
            yield _text(x, bottom + 17, str(count), "small")
        points = " ".join("{:g},{:g}".format(*self._at(one["micro_batches"], one["simulated_idle"])) for one in bubbles)
        yield f'<polyline points="{points}" class="simulated"/>'
        for one in bubbles:
            x, y = self._at(one["micro_batches"], one["idle"])
            low, high = (self._at(one["micro_batches"], one[key])[1] for key in ("least_idle", "most_idle"))
            yield _line(x, low, x, high, "range")
            yield f'<circle cx="{x:g}" cy="{y:g}" r="3.5" class="measured"/>'


def drawing(source: str) -> str:
    """Return the SVG of a record in benchmarks/results."""
    record = json.loads((RESULTS / source).read_text(encoding="utf-8"))
    pipelines = [one for one in record["pipelines"] if "bubbles" in one]
    rows = -(-len(pipelines) // COLUMNS)
    right, bottom = LEFT + COLUMNS * (WIDTH + GAP_X), TOP + rows * (HEIGHT + GAP_Y)
    parts = [part for number, one in enumerate(pipelines) for part in Panel(number, one).parts()]
    legend = [
        _text(LEFT, 28, "Share of a step's passes in which a rank waits, mean over ranks", anchor="start"),
        _line(LEFT, 48, LEFT + 24, 48, "simulated"),
        _text(LEFT + 32, 52, "simulated with the measured times of passes and messages", "small", "start"),
        f'<circle cx="{LEFT + 440}" cy="48" r="3.5" class="measured"/>',
        _text(LEFT + 452, 52, f"measured: median and range of {record['steps']} steps", "small", "start"),
        _text(LEFT, bottom - 22, "micro-batches in a step", "small", "start"),
    ]
    body = "\n".join([*legend, *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right} {bottom}" role="img">\n'
        "<title>Waiting in pipelines, measured and simulated</title>\n"
        f"<desc>benchmarks/results/{source}</desc>\n"
        f"<style>{STYLE}</style>\n{body}\n</svg>\n"
    )


def _source(arguments: Sequence[str]) -> str:
    for word in arguments:
        if word.endswith(".json"):
            return Path(word).name
    found = re.search(r"<desc>benchmarks/results/(.+)</desc>", FILE.read_text(encoding="utf-8"))
    assert found is not None, f"{FILE.name} names no record: say which one to draw"
    return found[1]


def main(arguments: list[str]) -> int:
    """Write the file, or compare with it."""
    drawn = drawing(_source(arguments))
    if "--check" in arguments:
        if FILE.is_file() and FILE.read_text(encoding="utf-8") == drawn:
            return 0
        sys.stderr.write(f"{FILE.name} is out of date: run python docs/{Path(__file__).name}\n")
        return 1
    FILE.write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
