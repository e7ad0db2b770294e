"""Draw docs/axes.svg: which rank of a 2 x 2 x 2 layout does what, and who talks to whom.

usage: python docs/draw_axes.py [--check]
  --check   write nothing; exit 1 if the file is not what would be drawn
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from trainer.mesh import Mesh

FILE = Path(__file__).with_name("axes.svg")
GRID = Mesh(pipeline_parallel_size=2, data_parallel_size=2, tensor_parallel_size=2)
HOLDS = ("embedding, first blocks", "last blocks, norm, head")
BOX_WIDTH, BOX_HEIGHT = 150, 74
LEFT, TOP = 96, 76
TENSOR_GAP, DATA_GAP, PIPELINE_GAP = 34, 120, 84
STYLE = """
  text { font: 15px system-ui, sans-serif; fill: #1f2328; }
  .small { font-size: 12px; fill: #59636e; }
  .rank { fill: #f6f8fa; stroke: #59636e; stroke-width: 1.5; }
  .node { fill: none; stroke: #59636e; stroke-dasharray: 5 5; }
  .tensor { stroke: #0969da; fill: #0969da; stroke-width: 5; }
  .data { stroke: #1a7f37; fill: #1a7f37; stroke-width: 2; stroke-dasharray: 2 4; }
  .pipeline { stroke: #9a6700; fill: #9a6700; stroke-width: 2; }
  text.tensor, text.data, text.pipeline { stroke: none; font-size: 13px; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; } .small { fill: #9198a1; }
    .rank { fill: #151b23; stroke: #9198a1; } .node { stroke: #9198a1; }
    .tensor { stroke: #4493f8; fill: #4493f8; } .data { stroke: #3fb950; fill: #3fb950; }
    .pipeline { stroke: #d29922; fill: #d29922; }
  }
"""


def corner(rank: int) -> tuple[int, int]:
    """Return the upper left corner of a rank's box."""
    at = GRID.coordinate(rank)
    replica_width = 2 * BOX_WIDTH + TENSOR_GAP
    x = LEFT + at.dp_rank * (replica_width + DATA_GAP) + at.tp_rank * (BOX_WIDTH + TENSOR_GAP)
    return x, TOP + at.stage * (BOX_HEIGHT + PIPELINE_GAP)


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    label = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{label}>{words}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str, ends: str = "") -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" class="{kind}"{ends}/>'


def _boxes() -> Iterator[str]:
    for rank in range(GRID.size):
        at, (x, y) = GRID.coordinate(rank), corner(rank)
        yield f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8" class="rank"/>'
        yield _text(x + BOX_WIDTH / 2, y + 32, f"rank {rank}")
        yield _text(x + BOX_WIDTH / 2, y + 54, f"half {at.tp_rank + 1} of each matrix", "small")


def _links() -> Iterator[str]:
    middle = BOX_HEIGHT / 2
    for first, second in GRID.tensor_groups():
        (x1, y), (x2, _) = corner(first), corner(second)
        yield _line(x1 + BOX_WIDTH, y + middle, x2, y + middle, "tensor")
    for first, second in GRID.pipeline_groups():
        (x, y1), (_, y2) = corner(first), corner(second)
        ends = ' marker-start="url(#up)" marker-end="url(#down)"'
        yield _line(x + BOX_WIDTH / 2, y1 + BOX_HEIGHT + 9, x + BOX_WIDTH / 2, y2 - 9, "pipeline", ends)
    for first, second in GRID.sample_groups():
        (x1, y), (x2, _) = corner(first), corner(second)
        # Below the box for the first half, above it for the second, so that the two ways do not meet.
        height = y + BOX_HEIGHT + 14 if GRID.coordinate(first).tp_rank == 0 else y - 14
        edge = y + BOX_HEIGHT if height > y else y
        a, b = x1 + BOX_WIDTH * 0.75, x2 + BOX_WIDTH * 0.25
        yield f'<path d="M{a:g} {edge} V{height} H{b:g} V{edge}" class="data" style="fill: none"/>'


def _words() -> Iterator[str]:
    _, last = corner(GRID.size - 1)
    for replica in range(GRID.data_parallel_size):
        x, y = corner(GRID.rank(0, replica, 0))
        width = 2 * BOX_WIDTH + TENSOR_GAP
        yield _text(x + width / 2, y - 44, f"replica {replica}: its own samples")
        height = last - y + BOX_HEIGHT + 60
        yield f'<rect x="{x - 16}" y="{y - 30}" width="{width + 32}" height="{height}" rx="14" class="node"/>'
    for stage in range(GRID.pipeline_parallel_size):
        x, y = corner(GRID.rank(stage, 0, 0))
        yield _text(x - 26, y + 34, f"stage {stage}", anchor="end")
    bottom = last + BOX_HEIGHT
    for stage, holds in enumerate(HOLDS):
        yield _text(LEFT - 26, bottom + 66 + 20 * stage, f"stage {stage}", "small", "end")
        yield _text(LEFT, bottom + 66 + 20 * stage, holds, "small", "start")
    x = LEFT + 240
    yield _text(x, bottom + 66, "tensor: a block adds up its halves, twice", "tensor", "start")
    yield _text(x, bottom + 86, "pipeline: hidden states down, gradients up", "pipeline", "start")
    yield _text(x + 320, bottom + 66, "data: gradients are averaged,", "data", "start")
    yield _text(x + 320, bottom + 86, "ZeRO shards the optimizer", "data", "start")


def drawing() -> str:
    """Return the SVG."""
    right, bottom = (a + b for a, b in zip(corner(GRID.size - 1), (BOX_WIDTH + 32, BOX_HEIGHT + 104), strict=True))
    arrows = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="{turn}"><path d="M0 0 L8 4 L0 8 z" class="pipeline"/></marker>'
        for name, turn in (("down", "auto"), ("up", "auto-start-reverse"))
    )
    body = "\n".join([*_words(), *_links(), *_boxes()])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right} {bottom}" role="img">\n'
        "<title>8 ranks: 2 pipeline stages x 2 replicas x 2 tensor-parallel ranks</title>\n"
        f"<style>{STYLE}</style>\n<defs>{arrows}</defs>\n{body}\n</svg>\n"
    )


def main(arguments: list[str]) -> int:
    """Write the file, or compare with it."""
    if "--check" in arguments:
        if FILE.is_file() and FILE.read_text(encoding="utf-8") == drawing():
            return 0
        sys.stderr.write(f"{FILE.name} is out of date: run python docs/{Path(__file__).name}\n")
        return 1
    FILE.write_text(drawing(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
