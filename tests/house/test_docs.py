"""What the documentation says is true: links lead somewhere, commands compose, messages and names exist."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer import errors
from trainer.config.compose import compose
from trainer.config.multirun import points
from trainer.config.validate import problems
from trainer.errors import ConfigError, TridentError
from trainer.generation.options import parse

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = ("trident train", "trident data", "deepspeed", "torchrun", "srun")
RANKS = ("--num_gpus", "--nproc-per-node", "--ntasks")
"""Options of launchers that say how many ranks there are."""


def page_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code_lines(page: Path) -> Iterator[str]:
    """Yield the lines of fenced blocks, continued ones joined."""
    for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        yield from re.sub(r"\\\n\s*", "", block).splitlines()


def words_of(line: str) -> list[str]:
    return shlex.split(line, comments=True)


README_COMMANDS = [line for line in code_lines(ROOT / "README.md") if line.startswith(COMMANDS)]
TUTORIAL_COMMANDS = [line for line in code_lines(ROOT / "docs" / "tutorial.md") if line.startswith(COMMANDS)]
GENERATE_COMMANDS = [
    line
    for page in ("README.md", "docs/tutorial.md")
    for line in code_lines(ROOT / page)
    if line.startswith("trident generate")
]


def test_readme_shows_every_way_to_launch() -> None:
    assert {command for command in COMMANDS if any(line.startswith(command) for line in README_COMMANDS)} >= {
        "trident train",
        "deepspeed",
        "torchrun",
        "srun",
    }


@pytest.mark.parametrize("line", README_COMMANDS + TUTORIAL_COMMANDS)
def test_command_composes_and_is_legal(line: str) -> None:
    words = words_of(line)
    verb = words.index("train") if "train" in words else words.index("data")
    counts = [int(words[words.index(option) + 1]) for option in RANKS if option in words]
    settings = [word for word in words[verb + 1 :] if word != "--multirun"]
    runs = [point.words for point in points(settings)] if "--multirun" in words else [settings]
    for run in runs:
        assert problems(compose(run), counts[0] if counts else None) == []


@pytest.mark.parametrize("line", GENERATE_COMMANDS)
def test_generate_command_parses(line: str) -> None:
    assert parse(words_of(line)[2:]).checkpoint


def test_the_tutorial_goes_all_the_way() -> None:
    assert len(TUTORIAL_COMMANDS) >= 12
    text = " ".join(TUTORIAL_COMMANDS)
    for step in (
        "layout=dp2",
        "micro_batch_size=1",
        "zero=stage3",
        "layout=pp2",
        "layout=tp2",
        "tp2_pp2_dp2",
        "offload",
    ):
        assert step in text


def test_refusals_of_the_readme_are_what_is_said() -> None:
    lines = list(code_lines(ROOT / "README.md"))
    shown = [(line, lines[index + 1]) for index, line in enumerate(lines) if line.startswith("$ trident train")]
    assert shown
    for command, answer in shown:
        try:
            found = problems(compose(words_of(command)[3:]))
        except ConfigError as error:
            found = list(error.problems)
        assert [f"error: {problem}" for problem in found] == [answer], command


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("script", ["generate_configuration.py", "draw_axes.py"])
def test_what_is_generated_is_fresh(script: str) -> None:
    command = [sys.executable, f"docs/{script}", "--check"]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def message_texts() -> str:
    """Return every string of the trainer; what an f-string fills in reads as a line break."""
    texts: list[str] = []
    for path in sorted((ROOT / "trainer").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts += ["".join(str(p.value) if isinstance(p, ast.Constant) else "\n" for p in node.values)]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts += [node.value]
    return "\n".join(texts)


def test_messages_in_troubleshooting_exist() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^### `([^`]+)`$", text, re.MULTILINE) + re.findall(r"^Also `([^`]+)`\.", text, re.MULTILINE)
    assert len(quoted) > 20
    known = message_texts()
    parts = [part.strip(" ()'") for message in quoted for part in message.split("...")]
    assert [part for part in parts if part not in known] == []


def test_readme_lists_every_metric_and_exit_code() -> None:
    from trainer.metrics.row import ROW_NAMES

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TridentError)]
    assert [name for name in ROW_NAMES if f"`{name}`" not in text] == []
    assert [kind.__name__ for kind in kinds if f"\n| {kind.exit_code} | " not in text] == []
