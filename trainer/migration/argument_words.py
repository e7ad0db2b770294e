"""The command of a script that trains, and its arguments as settings, as argparse reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trainer.errors import ConfigError
from trainer.migration.foreign import Setting
from trainer.migration.shell_script import Command, Script
from trainer.migration.shell_values import Marks

SIZES = ("--num-layers", "--hidden-size")
"""Arguments by which a command that trains a model is recognised."""
_ENDS = (">", ">>", "<", "2>", "&>", "&>>", "2>&1", "|", "||", "&", "&&", ";")
"""Words with which the arguments end where a command line was a text before."""
_SAYING = ("echo", "printf", "cat", "tee")
_OPTION = re.compile(r"--?[A-Za-z_][\w.-]*")


def training_command(script: Script, name: str) -> tuple[list[str], list[str], int]:
    """Return the words of the launcher, those of the trainer, and the line of the command that trains.

    Args:
        script: the script, or a file with nothing but arguments.
        name: its name.

    Raises:
        ConfigError: there is no such command, or there are several different ones.
    """
    found: dict[tuple[str, ...], Command] = {}
    for command in script.commands:
        if command.words[0] in _SAYING:
            continue
        words = command.words
        if any(_name(word) in SIZES for word in words):
            found.setdefault(words, command)
    bare = [command for words, command in found.items() if words[0].startswith("--")]
    if bare and len(bare) == len(found):
        # Arguments alone, on one line or on several.
        words = tuple(word for one in script.commands if one.words[0].startswith("--") for word in one.words)
        return [], list(words), bare[0].line
    if not found and (held := _held(script, name)):
        return [], held, 1
    if not found:
        raise ConfigError(
            f"{name} must hold a command that trains a GPT, with {' and '.join(SIZES)}, but none was found",
            ["a file with the arguments alone will do, too"],
        )
    if len(found) > 1:
        lines = ", ".join(str(command.line) for command in found.values())
        raise ConfigError(f"{name} must train once, but has several commands that train (lines {lines}); keep one")
    ((words, command),) = found.items()
    start = next((at for at, word in enumerate(words) if word.endswith(".py")), None)
    if start is None:
        start = next(at for at, word in enumerate(words) if word.startswith("--")) - 1
    return list(words[:start]), list(words[start + 1 :]), command.line


def _held(script: Script, name: str) -> list[str]:
    """Return arguments that a script only keeps in a variable, for other scripts that source it."""
    found = {}
    for variable, value in script.variables.items():
        words = value.split() if isinstance(value, str) else value
        if any(_name(word) == SIZES[0] for word in words) and any(_name(word) == SIZES[1] for word in words):
            found[variable] = words
    if len({tuple(words) for words in found.values()}) != 1:
        return []
    ((variable, words), *_) = found.items()
    script.notes.append(f"{name}: there is no command that trains; the arguments are those of the variable {variable}")
    return words


def settings_of(words: Sequence[str], marks: Marks, place: str) -> dict[str, Setting]:
    """Return arguments as settings: a name without a value is true, one with several has a list.

    Where a name stands twice the later one counts, as argparse has it.
    """
    found: dict[str, Setting] = {}
    at = 0
    while at < len(words) and words[at] not in _ENDS:
        word = words[at]
        at += 1
        if not _is_option(word):
            continue
        name, equals, value = word.partition("=")
        values: list[object] = [marks.value(value)] if equals else []
        while not equals and at < len(words) and not _is_option(words[at]) and words[at] not in _ENDS:
            values.append(marks.value(words[at]))
            at += 1
        plain = name.lstrip("-").lower().replace("-", "_")
        held: object = True if not values else values[0] if len(values) == 1 else values
        found[plain] = Setting(plain, held, name, place)
    return found


def _is_option(word: str) -> bool:
    return _OPTION.fullmatch(word.partition("=")[0]) is not None


def _name(word: str) -> str:
    return word.partition("=")[0].replace("_", "-")
