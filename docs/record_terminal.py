"""Record docs/terminal.svg: commands that are run on a terminal, and what it shows, as a picture that plays.

usage: python docs/record_terminal.py FOLDER
  FOLDER    folder to run in, which is made; it keeps the run

The commands run for real, on a terminal of their own, with the `trident` of this Python; only pauses are shortened. It
needs pyte, which understands what is written to a terminal: pip install pyte
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pyte

FILE = Path(__file__).with_name("terminal.svg")
COMMANDS = (
    "trident train layout=pp4 model.num_layers=3",
    "trident train layout=tp2_pp2 train.steps=40 run_dir=runs/four_ranks logging.wandb=disabled",
    "trident train layout=single train.steps=40 run_dir=runs/one_rank logging.wandb=disabled",
    "trident runs",
    "trident compare runs/one_rank runs/four_ranks | tail -n 26",
)
COLUMNS, LINES = 100, 28
LONGEST_PAUSE_S = 0.3
"""Longest time for which nothing changes, before it is shortened."""
_FRAME_S = 0.2
_KEY_S = 0.03
_READ_S = 2.0
"""Seconds for which a command's last screen stays."""
_LAST_S = 8.0
_LIMIT_S = 600.0
_CELL, _LINE, _MARGIN, _BAR = 8.2, 17, 14, 30
_COLOURS = {
    "default": "#e6edf3",
    "black": "#484f58",
    "red": "#ff7b72",
    "green": "#3fb950",
    "brown": "#d29922",
    "blue": "#58a6ff",
    "magenta": "#bc8cff",
    "cyan": "#39c5cf",
    "white": "#b1bac4",
}
Look = tuple[str, bool]
"""Colour, and whether it is bold."""
Line = tuple[tuple[int, str, Look], ...]
"""Column, text and look of each part."""


class Frame(NamedTuple):
    """A screen and the time at which it appears, in seconds."""

    at: float
    lines: tuple[Line, ...]


class Recording:
    """A terminal and the screens that were seen on it."""

    def __init__(self, columns: int = COLUMNS, lines: int = LINES) -> None:
        self._screen = pyte.Screen(columns, lines)
        # A program writes for a terminal that turns a line feed into a line's beginning as well.
        self._screen.set_mode(pyte.modes.LNM)
        self._stream = pyte.ByteStream(self._screen)
        self._at = self._changed_at = 0.0
        self.frames: list[Frame] = []

    def show(self, text: bytes, after_s: float) -> None:
        """Write to the terminal, after a pause that is shortened if it is long."""
        self._at = min(self._at + after_s, max(self._at, self._changed_at + LONGEST_PAUSE_S))
        self._stream.feed(text)
        if not self.frames or self._at - self.frames[-1].at >= _FRAME_S:
            self.keep()

    def keep(self) -> None:
        """Keep the screen as it is now, if it has changed."""
        lines = tuple(_line(self._screen.buffer[row], self._screen.columns) for row in range(self._screen.lines))
        if not self.frames or self.frames[-1].lines != lines:
            self.frames.append(Frame(self._at, lines))
            self._changed_at = self._at

    def wait(self, seconds: float) -> None:
        """Let the screen stay for a while."""
        self.keep()
        self._at += seconds
        self._changed_at = self._at

    @property
    def length_s(self) -> float:
        """Length of the recording so far."""
        return self._at


def _line(cells: Mapping[int, pyte.screens.Char], columns: int) -> Line:
    parts: list[tuple[int, str, Look]] = []
    for look, group in groupby(range(columns), key=lambda column: _look(cells[column])):
        places = list(group)
        text = "".join(cells[column].data for column in places)
        if text.strip():
            parts.append((places[0] + len(text) - len(text.lstrip()), text.strip(), look))
    return tuple(parts)


def _look(cell: pyte.screens.Char) -> Look:
    colour = _COLOURS.get(cell.fg) or (f"#{cell.fg}" if len(cell.fg) == 6 else _COLOURS["default"])
    return colour, cell.bold


def record(commands: Sequence[str], folder: Path) -> Recording:
    """Run commands one after the other and return what was seen."""
    recording = Recording()
    for command in commands:
        recording.show(b"\x1b[32m$\x1b[0m ", 0.0)
        for letter in command:
            recording.show(letter.encode(), _KEY_S)
        recording.show(b"\r\n", 0.4)
        recording.keep()
        for text, after_s in _output(command, folder):
            recording.show(text, after_s)
        recording.wait(_READ_S)
    recording.show(b"\x1b[32m$\x1b[0m ", 0.0)
    recording.wait(_LAST_S)
    return recording


def _output(command: str, folder: Path) -> Iterator[tuple[bytes, float]]:
    """Yield what a command writes, and the seconds since it wrote before."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "TRIDENT"))}
        found = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        os.execvpe("sh", ["sh", "-c", command], {**kept, "PATH": found, "TERM": "xterm-256color", "LANG": "C.UTF-8"})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    end = time.monotonic() + _LIMIT_S
    before = time.monotonic()
    while time.monotonic() < end:
        if not select.select([terminal], [], [], 0.5)[0]:
            continue
        try:
            text = os.read(terminal, 65536)
        except OSError:
            break
        now = time.monotonic()
        yield text, now - before
        before = now
    else:
        raise SystemExit(f"{command} must end within {_LIMIT_S:g} s")
    os.close(terminal)
    os.waitpid(process, 0)


def picture(recording: Recording, title: str, description: str) -> str:
    """Return the recording as an SVG that plays for ever; where motion is not wanted it is the last screen."""
    width, height = COLUMNS * _CELL + 2 * _MARGIN, LINES * _LINE + 2 * _MARGIN + _BAR
    numbers: dict[Line, int] = {}
    for frame in recording.frames:
        for line in frame.lines:
            if line:
                numbers.setdefault(line, len(numbers))
    texts = [f'<g id="l{number}">{"".join(_part(*part) for part in line)}</g>' for line, number in numbers.items()]
    frames = []
    for place, frame in enumerate(recording.frames):
        uses = (f'<use href="#l{numbers[line]}" y="{row * _LINE}"/>' for row, line in enumerate(frame.lines) if line)
        frames.append(f'<g transform="translate({place * width:.1f} 0)">{"".join(uses)}</g>')
    length = recording.length_s
    keys = "".join(
        f"{100 * frame.at / length:.3f}%{{transform:translateX({-place * width:.1f}px)}}"
        for place, frame in enumerate(recording.frames)
    )
    last = (len(recording.frames) - 1) * width
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.1f} {height}" role="img" \
aria-labelledby="title description">
<title id="title">{escape(title)}</title>
<desc id="description">{escape(description)}</desc>
<style>
text {{ font: 13.6px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre; }}
.film {{ animation: film {length:.2f}s steps(1, end) infinite; }}
@keyframes film {{ {keys} }}
@media (prefers-reduced-motion: reduce) {{ .film {{ animation: none; transform: translateX({-last:.1f}px); }} }}
</style>
<defs>
{chr(10).join(texts)}
</defs>
<rect width="100%" height="100%" rx="8" fill="#0d1117"/>
<circle cx="20" cy="18" r="6" fill="#ff7b72"/><circle cx="40" cy="18" r="6" fill="#d29922"/>\
<circle cx="60" cy="18" r="6" fill="#3fb950"/>
<svg x="0" y="{_BAR + _MARGIN}" width="{width:.1f}" height="{LINES * _LINE}"><g class="film">
{chr(10).join(frames)}
</g></svg>
</svg>
"""


def _part(column: int, text: str, look: Look) -> str:
    colour, is_bold = look
    weight = ' font-weight="bold"' if is_bold else ""
    place = f'x="{_MARGIN + column * _CELL:.1f}" y="{_LINE - 4}" textLength="{len(text) * _CELL:.1f}"'
    return f'<text {place} fill="{colour}"{weight}>{escape(text)}</text>'


def main(words: Sequence[str]) -> None:
    """Record and write the picture."""
    if len(words) != 1:
        raise SystemExit("usage: python docs/record_terminal.py FOLDER")
    folder = Path(words[0])
    folder.mkdir(parents=True)
    recording = record(COMMANDS, folder)
    description = "Commands and what they show: " + "; ".join(COMMANDS)
    FILE.write_text(picture(recording, "Trident in a terminal", description), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
