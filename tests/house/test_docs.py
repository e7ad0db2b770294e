"""What the documentation says is true: links lead somewhere, commands compose, messages and names exist."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer import errors
from trainer.config.compose import compose, recompose
from trainer.config.multirun import points
from trainer.config.validate import problems
from trainer.errors import ConfigError, TridentError
from trainer.evaluation import evaluate_options
from trainer.generation import options as generate_options
from trainer.resharding import MAY_CHANGE
from trainer.resharding import parse as parse_reshard
from trainer.verbs.parse import parse
from trainer.verbs.table import NAMES, find_verb, named_verb

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
"""The published config of the model of the README, as far as it says what is computed."""
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
FINE_TUNING_COMMANDS = [line for line in code_lines(ROOT / "docs" / "fine_tuning.md") if line.startswith(COMMANDS)]
BELOW = tuple(f"trident {name}" for name in NAMES if " " in name)
"""Verbs below another one."""
DATA_COMMANDS = [
    line for line in code_lines(ROOT / "docs" / "data.md") if line.startswith(COMMANDS) and not line.startswith(BELOW)
]
MODEL_COMMANDS = [
    line
    for page in ("README.md", "docs/tutorial.md", "docs/generate.md", "docs/evaluate.md", "docs/fine_tuning.md")
    for line in code_lines(ROOT / page)
    if line.startswith(("trident generate", "trident evaluate"))
]


def test_readme_shows_every_way_to_launch() -> None:
    assert {command for command in COMMANDS if any(line.startswith(command) for line in README_COMMANDS)} >= {
        "trident train",
        "deepspeed",
        "torchrun",
        "srun",
    }


@pytest.mark.parametrize("line", README_COMMANDS + TUTORIAL_COMMANDS + FINE_TUNING_COMMANDS + DATA_COMMANDS)
def test_command_composes_and_is_legal(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of(line)
    monkeypatch.chdir(tmp_path)
    for word in words:
        if word.startswith("model.path="):
            source = tmp_path / word.removeprefix("model.path=")
            source.mkdir()
            (source / "config.json").write_text(json.dumps(SMOLLM2))
            (source / "tokenizer.json").write_text("{}")
    verb = words.index("train") if "train" in words else words.index("data")
    counts = [int(words[words.index(option) + 1]) for option in RANKS if option in words]
    settings = [word for word in words[verb + 1 :] if word != "--multirun"]
    runs = [point.words for point in points(settings)] if "--multirun" in words else [settings]
    for run in runs:
        assert problems(compose(run), counts[0] if counts else None) == []


@pytest.mark.parametrize("line", [line for page in PAGES for line in code_lines(page) if line.startswith(BELOW)])
def test_command_of_a_verb_below_another_one_parses(line: str) -> None:
    name, words = named_verb(words_of(line)[1:])
    verb = find_verb(name)
    given = parse(verb, words).rest
    assert len(given) >= len(verb.positionals)
    compose(given[len(verb.positionals) :])


@pytest.mark.parametrize("line", MODEL_COMMANDS)
def test_command_with_a_model_parses(line: str) -> None:
    _, verb, *words = words_of(line)
    assert {"generate": generate_options, "evaluate": evaluate_options}[verb].parse(words).checkpoint


RESHARD_COMMANDS = [
    line for page in PAGES for line in code_lines(page) if re.match(r"trident reshard|.* trident reshard", line)
]


def test_some_page_shows_how_to_reshard() -> None:
    assert len(RESHARD_COMMANDS) > 3


@pytest.mark.parametrize("line", RESHARD_COMMANDS)
def test_reshard_command_of_the_documentation_composes(line: str) -> None:
    words = words_of(line)
    _, _, overrides = parse_reshard(words[words.index("reshard") + 1 :])
    recompose(compose([]), overrides, MAY_CHANGE)


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


@pytest.mark.parametrize(
    "script", ["generate_configuration.py", "generate_models.py", "draw_axes.py", "draw_bubble.py"]
)
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


def named_tests(text: str) -> list[tuple[str, str]]:
    """Return (file, function) of every test that a page names by its node id."""
    return re.findall(r"`?(tests/[\w/]+\.py)::(test_\w+)", text)


def missing_tests(text: str) -> list[str]:
    """Return the node ids on a page that lead nowhere."""
    missing = []
    for file, function in named_tests(text):
        path = ROOT / file
        tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        missing += [] if function in names else [f"{file}::{function}"]
    return missing


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_tests_that_are_named_exist(page: Path) -> None:
    assert missing_tests(page.read_text(encoding="utf-8")) == []


def test_a_test_that_is_gone_is_noticed() -> None:
    real = "tests/house/test_docs.py::test_a_test_that_is_gone_is_noticed"
    gone = ["tests/house/test_docs.py::test_nothing", "tests/house/test_missing.py::test_a"]
    assert missing_tests(f"| `{real}` `{gone[0]}` | {gone[1]}") == gone


def test_the_table_of_faults_is_whole() -> None:
    """Every row of the table says what happens, and names a test or admits that there is none."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [re.split(r"(?<!\\)\|", line) for line in text.splitlines() if re.match(r"\| \d+ \| .*\|.*\|.*\|", line)]
    faults = [row for row in rows if len(row) == 7]
    assert [int(row[1]) for row in faults] == list(range(1, 37))
    for row in faults:
        assert row[3].strip(), row
        assert named_tests(row[4]) or row[4].strip() == "-", row
        assert row[5].strip(), row
    assert len(named_tests("".join(row[4] for row in faults))) > 60
