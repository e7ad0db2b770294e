"""The prompts of `trident generate`: those of the command line, and those of a file. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config.places import absolute_path
from trainer.data.chat_template import ChatTemplate, Message
from trainer.errors import ConfigError, DataError
from trainer.generation.options import GenerateOptions

_LINES, _OBJECTS = ".txt", ".jsonl"
_PROMPT, _MESSAGES = "prompt", "messages"


@dataclass(frozen=True)
class Prompt:
    """The beginning of a text."""

    text: str
    """The text that the model continues."""
    origin: str
    """The place that it comes from, as errors name it."""
    shown: str
    """The part of it that is shown before what the model writes: all of it, or in a chat nothing."""
    is_rendered: bool = False
    """True if a chat template wrote the text, with the special tokens that belong to it."""


@dataclass(frozen=True)
class _Given:
    """A prompt as it was given."""

    origin: str
    content: str | Sequence[Message]


def read_prompts(options: GenerateOptions, template: ChatTemplate | None) -> list[Prompt]:
    """Return the prompts in their order: of the command line, then of the file; without any, one empty prompt.

    Args:
        options: what was asked for.
        template: the tokenizer's chat template, for `chat`.

    Raises:
        ConfigError: the file cannot be used, or a chat is asked for without a template.
        DataError: the template refuses messages.
    """
    given = [_Given(_named(index, options.prompt), text) for index, text in enumerate(options.prompt)]
    if options.prompts:
        given += _of_file(absolute_path(options.prompts, "prompts"))
    if not given:
        given.append(_Given("prompt", ""))
    for one in given:
        _check_text(one)
    return [_in_chat(one, template) if options.chat else _plain(one) for one in given]


def _named(index: int, prompts: Sequence[str]) -> str:
    return "prompt" if len(prompts) == 1 else f"prompt {index + 1}"


def _check_text(one: _Given) -> None:
    """Refuse halves of characters, which no text can be written with."""
    try:
        json.dumps(one.content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{one.origin} must be text, but is not: {error}") from error


def _plain(one: _Given) -> Prompt:
    if isinstance(one.content, str):
        return Prompt(one.content, one.origin, one.content)
    raise ConfigError(f"{one.origin} must be a prompt, but holds messages; set chat=true to let the model answer them")


def _in_chat(one: _Given, template: ChatTemplate | None) -> Prompt:
    if template is None:
        raise ConfigError(
            "chat=true needs a tokenizer with a chat template, but this one has none (chat_template in "
            "tokenizer_config.json, or chat_template.jinja); use chat=false, or name another with tokenizer=PATH"
        )
    messages = [{"role": "user", "content": one.content}] if isinstance(one.content, str) else one.content
    try:
        return Prompt(template.render(messages), one.origin, "", is_rendered=True)
    except DataError as error:
        raise DataError(f"{one.origin}: {error}", error.hints) from error


def _of_file(path: Path) -> list[_Given]:
    if path.suffix not in (_LINES, _OBJECTS):
        raise ConfigError(f"prompts must be a file of lines ({_LINES}) or of JSON objects ({_OBJECTS}), but is {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts must be a file that can be read, but {path}: {error}") from error
    read = _object if path.suffix == _OBJECTS else _line
    found = [read(f"{path.name}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ConfigError(f"prompts must be a file with a prompt, but {path} has none: all of its lines are empty")
    return found


def _line(origin: str, line: str) -> _Given:
    return _Given(origin, line.removesuffix("\r"))


def _object(origin: str, line: str) -> _Given:
    try:
        held = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{origin} must be a JSON object, but: {error}") from error
    if not isinstance(held, dict):
        raise ConfigError(f"{origin} must be a JSON object, but is {type(held).__name__}")
    if isinstance(held.get(_PROMPT), str):
        return _Given(origin, held[_PROMPT])
    messages = held.get(_MESSAGES)
    if isinstance(messages, list) and messages and all(_is_message(one) for one in messages):
        return _Given(origin, messages)
    raise ConfigError(
        f'{origin} must hold "{_PROMPT}" with a text, or "{_MESSAGES}" with a list of objects with "role" and '
        f'"content", but holds {", ".join(map(repr, held)) or "nothing"}'
    )


def _is_message(one: object) -> bool:
    return isinstance(one, Mapping) and isinstance(one.get("role"), str) and "content" in one
