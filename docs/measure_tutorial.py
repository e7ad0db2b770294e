"""Run every command of docs/tutorial.md and compare or refresh the numbers in its tables.

usage: python docs/measure_tutorial.py [--write] [--folder FOLDER] [--from N]
  --write          put what was measured into the page; otherwise losses are compared with it (exit 1 if one differs)
  --folder FOLDER  where the runs go, kept afterwards (default: a temporary folder)
  --from N         begin with the N-th command, counted from 1, of runs that are in FOLDER already
Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("tutorial.md")
LOSS_TOLERANCE = 2e-3
"""Another processor rounds otherwise; after 40 steps that shows in the fourth digit at most."""
Row = Mapping[str, Any]


def commands(text: str) -> list[list[str]]:
    """Return the words of every command in a bash block of the page, continued lines joined."""
    lines: list[str] = []
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        lines += re.sub(r"\\\n\s*", "", block).splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words[:1] == ["trident"]]


def _speed(row: Row) -> str:
    return f"{row['perf/tokens_per_second']:,.0f}"


def _bubble(row: Row) -> str:
    return f"{row['pipeline/bubble_fraction']:.0%}" if "pipeline/bubble_fraction" in row else "-"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "loss": lambda row: f"{row['train/loss']:.4f}",
    "tokens/s": _speed,
    "ms a step": lambda row: f"{row['time/step_ms']:,.0f}",
    "GiB": lambda row: f"{row['memory/peak_allocated_gib']:.2f}",
    "bubble": _bubble,
}
"""Column of a table -> what a run's last row of metrics says there."""


def cells(line: str) -> list[str]:
    """Return the cells of a table's line."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def table_rows(text: str) -> Iterator[tuple[int, list[str], list[str]]]:
    """Yield (number of the line, heads of the table, cells) of every row that starts with a run's folder."""
    heads: list[str] = []
    for number, line in enumerate(text.splitlines()):
        if not line.startswith("|"):
            heads = []
        elif not heads:
            heads = cells(line)
        elif line.startswith("| `runs/"):
            yield number, heads, cells(line)


def last_row(folder: Path, name: str) -> Row:
    """Return the last row of metrics of the run that a table's first cell names."""
    lines = (folder / name.strip("`") / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = json.loads(lines[-1])
    assert isinstance(found, dict)
    return found


def run_all(folder: Path, text: str, first: int = 1) -> None:
    """Run the page's commands in a folder, in order.

    Raises:
        subprocess.CalledProcessError: one of them failed.
    """
    for number, words in enumerate(commands(text), 1):
        if number < first:
            continue
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", "trainer", *words[1:]], cwd=folder, check=True, stdin=subprocess.DEVNULL)
        sys.stdout.write(f"--- command {number}: {time.monotonic() - start:.0f} s: {shlex.join(words)}\n")
        sys.stdout.flush()


def differences(folder: Path, text: str) -> list[str]:
    """Return a line for each loss that is not what the page says."""
    wrong = []
    for _, heads, found in table_rows(text):
        if "loss" in heads:
            here, said = last_row(folder, found[0])["train/loss"], float(found[heads.index("loss")])
            if abs(here - said) > LOSS_TOLERANCE:
                wrong.append(f"{found[0]}: the page says {said}, but the loss is {here:.4f}")
    return wrong


def refreshed(folder: Path, text: str) -> str:
    """Return the page with the numbers of the runs in `folder`."""
    lines = text.splitlines()
    for number, heads, found in table_rows(text):
        row = last_row(folder, found[0])
        new = [COLUMNS[head](row) if head in COLUMNS else cell for head, cell in zip(heads, found, strict=True)]
        lines[number] = f"| {' | '.join(new)} |"
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run, then compare or write."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--from", type=int, default=1, dest="first")
    chosen = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run_all(folder, text, chosen.first)
        if chosen.write:
            PAGE.write_text(refreshed(folder, text), encoding="utf-8")
            return 0
        wrong = differences(folder, text)
    sys.stdout.write("".join(f"{line}\n" for line in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
