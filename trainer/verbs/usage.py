"""The help of the command and of each verb, made from what the verbs declare."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Sequence

from trainer.config.keys import did_you_mean
from trainer.errors import ConfigError
from trainer.verbs.declare import Option, Takes, Verb
from trainer.verbs.parse import shown_value
from trainer.verbs.table import COMMAND_OPTIONS

_NARROWEST, _WIDEST = 70, 120
_LONGEST_HEAD = 30
"""Width from which on a head gets a line of its own."""


def width() -> int:
    """Return the width of help texts: that of the terminal, within limits."""
    return min(max(shutil.get_terminal_size((_WIDEST, 24)).columns, _NARROWEST), _WIDEST)


def rows(entries: Iterable[tuple[str, str]], wide: int) -> list[str]:
    """Return a list of two columns, the second one wrapped."""
    found = list(entries)
    column = 2 + max((len(head) for head, _ in found if len(head) <= _LONGEST_HEAD), default=0)
    lines = []
    for head, sentence in found:
        body = textwrap.wrap(sentence, wide - column - 2, break_long_words=False, break_on_hyphens=False) or [""]
        if len(head) > _LONGEST_HEAD:
            lines.append(f"  {head}")
            body = ["", *body]
        else:
            lines.append(f"  {head:<{column}}{body[0]}".rstrip())
        lines += [" " * (column + 2) + line for line in body[1:]]
    return lines


def paragraphs(texts: Iterable[str], wide: int) -> list[str]:
    """Return texts wrapped, an empty line between them."""
    lines: list[str] = []
    for text in texts:
        lines += [*textwrap.wrap(text, wide, break_long_words=False, break_on_hyphens=False), ""]
    return lines


def overview(verbs: Sequence[Verb]) -> str:
    """Return the help of the command, for a small screen. Verbs below another one are in the help of that one."""
    wide = width()
    lines = ["usage: trident VERB [word ...]", ""]
    lines += _section("verbs", [(verb.name, verb.summary) for verb in verbs if " " not in verb.name], wide)
    heads = ", ".join(_head(option).replace(" ", "\0") for option in COMMAND_OPTIONS)
    wrapped = textwrap.wrap(f"options: {heads}", wide, subsequent_indent=" " * 9, break_on_hyphens=False)
    return "\n".join([*lines, *(line.replace("\0", " ") for line in wrapped)])


def usage(verb: Verb) -> str:
    """Return the help of a verb."""
    wide = width()
    lines = [
        *textwrap.wrap(_first_line(verb), wide, subsequent_indent=" " * 7),
        "",
        *paragraphs((f"{verb.summary[0].upper()}{verb.summary[1:]}.", *verb.text), wide),
    ]
    for positional in verb.positionals:
        if positional.choices is not None:
            lines += [positional.metavar, *rows(positional.choices.items(), wide), ""]
    described = [(one.metavar, one.sentence) for one in verb.positionals if one.choices is None]
    lines += _section("words", described, wide)
    lines += _section("keys", [(key.name, _with_default(key.sentence, key.default)) for key in verb.keys], wide)
    options = [(_head(option), option.sentence) for option in verb.options if not option.is_hidden]
    lines += _section("options", [*options, ("--help, -h", "this text")], wide)
    lines += ["examples", *(f"  {example}" for example in verb.examples), ""] if verb.examples else []
    lines += [verb.more(wide)] if verb.more else []
    return "\n".join(lines).rstrip()


def word_explained(verb: Verb, word: str) -> str:
    """Return the explanation of a word of a verb that takes no settings of the config.

    Raises:
        ConfigError: the verb has no such word; the error says what may have been meant.
    """
    name = word.lstrip("-").partition("=")[0]
    found = {key.name: _with_default(key.sentence, key.default) for key in verb.keys}
    for positional in verb.positionals:
        found |= positional.choices or {positional.metavar: positional.sentence}
    plain = next((known for known in found if known.lower() == name.lower().replace("-", "_")), None)
    if plain is None:
        raise ConfigError(
            f"`trident {verb.name}` has no '{name}'{did_you_mean(name, found)}",
            hints=[f"see `trident {verb.name} --help`"],
        )
    return "\n".join(rows([(plain, found[plain])], width()))


def _section(title: str, entries: Sequence[tuple[str, str]], wide: int) -> list[str]:
    return [title, *rows(entries, wide), ""] if entries else []


def _first_line(verb: Verb) -> str:
    parts = [one.metavar for one in verb.positionals]
    parts += [f"{key.name}=..." for key in verb.keys if not key.default]
    parts += ["[option ...]"] if any(not option.is_hidden for option in verb.options) else []
    parts += ["[group=file ...]"] if verb.takes_settings else []
    parts += ["[key=value ...]"] if verb.takes_settings or verb.keys else []
    return " ".join(["usage: trident", verb.name, *parts])


def _with_default(sentence: str, default: str) -> str:
    return f"{sentence} (default {default})" if default else f"{sentence} (must be given)"


def _head(option: Option) -> str:
    names = ", ".join((option.name, *option.aliases))
    return names if option.takes is Takes.nothing else f"{names} {shown_value(option)}"
