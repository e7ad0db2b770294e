"""Reading of one word of the command line with Hydra's grammar. No torch.

Hydra's grammar refuses values that can mean one thing only, such as runs/it's, ~/x or a=b. Where it fails, the value
is split at its commas and brackets, each plain piece is quoted, and the grammar is asked again; so commas and brackets
keep their meaning. A value that is still unclear is refused with a word that says what was meant.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING

from trainer.config.keys import GROUPS, KEYS, did_you_mean, is_list, unknown_key
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override

EXPERIMENT = "experiment"
"""The group of recipes: its files set keys of other groups. The one group that may be left out (`experiment=null`)."""
CONFIG = "config"
"""`config=FILE`: start from a file that holds a whole config, such as a run's config.yaml."""
SEARCHPATH = "hydra.searchpath"
"""`hydra.searchpath=[DIR]`: Hydra's own name for further config folders."""
FUNCTIONS = ("choice", "range", "interval", "glob", "sort", "shuffle", "tag", "int", "float", "str", "bool")
"""Functions of Hydra's grammar: `range(1,4)` is not a text."""
KNOWN = frozenset((*KEYS, *GROUPS, EXPERIMENT, CONFIG, SEARCHPATH))
"""Names that can stand before `=`."""
_CLOSERS = {"(": ")", "[": "]", "{": "}"}
_CALL = re.compile(rf"({'|'.join(FUNCTIONS)})\s*\(")
_ARGUMENT = re.compile(r"[A-Za-z_]\w*\s*=")
_ESCAPED = re.compile(r"\\([\\()\[\]{}:=, \t])")


def quoted(text: str) -> str:
    """Return a value as Hydra's grammar reads it back; a backslash counts as one only before a quote."""
    quote = '"' if "'" in text and '"' not in text else "'"
    escaped = re.sub(rf"(\\*)({quote}|$)", lambda match: match[1] * 2 + match[2].replace(quote, f"\\{quote}"), text)
    return f"{quote}{escaped}{quote}"


def for_a_shell(word: str) -> str:
    """Return a word as a POSIX shell takes it. The quotes of Hydra's grammar are easier to read inside double ones."""
    if "'" not in word or re.search("[!`$]", word):
        return shlex.quote(word)
    return '"' + re.sub(r'(["$\\])', r"\\\1", word) + '"'


@functools.cache
def _parser() -> OverridesParser:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def _reads(word: str) -> Override | None:
    try:
        return _parser().parse_override(word)
    except Exception:  # the grammar raises its own errors, ValueError for huge numbers, RecursionError for deep nesting
        return None


def parse(word: str) -> Override:
    """Return a `key=value` word as Hydra reads it; the text that it was read from is the override's `input_line`.

    Raises:
        ConfigError: it is no `key=value`, there is no such key, or its value can mean several things.
    """
    if "=" not in word and not word.startswith("~"):
        guess = did_you_mean(word, [*GROUPS, *KEYS], "'{}=...'")
        raise ConfigError(f"'{word}' must be written key=value, {_file_or_example(word)}{guess}")
    found = _reads(word)
    if found is not None:
        return found
    key, _, value = word.partition("=")
    name = key.lstrip("+~").partition("@")[0]
    if name not in KNOWN:
        raise ConfigError(unknown_key(name, [*GROUPS, EXPERIMENT], value))
    if value.lstrip().startswith("{") and (name in GROUPS or name == EXPERIMENT):
        raise ConfigError(mapping_for_a_group(name, re.findall(r"\w+", value)))
    try:
        found = _reads(f"{key}={','.join(map(_piece, _pieces(value)))}")
    except _Unclear as error:
        meant = f"{key}={_meant(value.strip(), takes_list=name in KEYS and is_list(KEYS[name]))}"
        raise ConfigError(f"'{word}' cannot be read as key=value: {error}; write {for_a_shell(meant)}") from None
    if found is None:
        raise ConfigError(f"'{word}' cannot be read as key=value: {_reason(word)}")
    return found


def _file_or_example(word: str) -> str:
    if word.endswith((".yaml", ".yml")):
        own = word if word.startswith((".", "/", "~")) else f"./{word}"
        whole, some = for_a_shell(f"{CONFIG}={word}"), for_a_shell(f"{EXPERIMENT}={own}")
        return f"for a file that holds a whole config {whole}, for one that sets some keys {some}"
    return "for example train.steps=10"


def mapping_for_a_group(group: str, names: Iterable[object]) -> str:
    """Return the problem with a mapping that is given to a group; `names` are the names of its keys."""
    if group == EXPERIMENT:
        example = "train.steps=..."
    else:
        example = next((f"{group}.{name}=..." for name in names if f"{group}.{name}" in KEYS), f"{group}.key=value")
    return f"{group} takes the name of a file in conf/{group}; set single keys as {example}"


def readable(word: str) -> str:
    """Return the word in a form that Hydra's grammar reads, or unchanged where there is none."""
    try:
        return parse(word).input_line or word
    except ConfigError:
        return word


def list_items(value: str) -> list[str]:
    """Return the items of a list as they were typed, without their quotes."""
    return [_unquoted(item) for item in _pieces(value.strip()[1:-1])]


class _Unclear(Exception):
    """A value that can mean several things; the text says why."""


def _reason(word: str) -> str:
    try:
        _parser().parse_overrides([word])
    except Exception as error:  # as above
        lines = [line.strip() for line in str(error).splitlines()]
        lines = [line for line in lines if line.strip("^ ") and not line.startswith(("See http", "Error parsing"))]
        return (lines[-1] if lines else type(error).__name__).rstrip(".")
    return "its value is unclear"


def _meant(value: str, takes_list: bool) -> str:
    """Return what was probably meant by a value that is unclear, in a form that can be read."""
    if not takes_list:
        return quoted(value)
    if value.startswith("[") and "]" in value[:-1] and not value.endswith("]"):
        return f"[{quoted(value)}]"
    items = [item.strip() for item in value.removeprefix("[").removesuffix("]").split(",")]
    return f"[{','.join(item if _is_plain(item) else quoted(item) for item in items if item)}]"


def _is_plain(item: str) -> bool:
    """Return whether the item can stand in a list as it is; a backslash at its end would escape what follows."""
    return item[0] not in "[{(" and not item.endswith("\\") and _reads(f"k={item}") is not None


def _piece(text: str) -> str:
    """Return one item of a list or a sweep, quoted where the grammar does not read it as it is."""
    if text.startswith("["):
        end = _end(text, 0)
        if end < len(text) - 1:
            raise _Unclear(f"'{text[end + 1]}' follows the ']' of a list")
        return f"[{','.join(map(_piece, _pieces(text[1:-1])))}]" if text[1:-1].strip() else "[]"
    if text.startswith(("'", '"')) or (not text.endswith("\\") and _reads(f"k={text}") is not None):
        return text
    if text.startswith("{"):
        raise _Unclear("'{' begins a mapping, and no key takes one")
    call = _CALL.match(text)
    if call:
        arguments = text[call.end() : _end(text, call.end() - 1)]
        return f"{call[1]}({','.join(map(_argument, _pieces(arguments)))})"
    return quoted(_ESCAPED.sub(r"\1", text))


def _argument(text: str) -> str:
    return text if _ARGUMENT.match(text) else _piece(text)


def _pieces(text: str) -> list[str]:
    """Split a text at the commas that are in no brackets and no quotes."""
    pieces, start, place = [], 0, 0
    while place < len(text):
        letter = text[place]
        at_start = not text[start:place].strip()
        if letter == "\\":
            place += 2
        elif letter in "'\"" and at_start:
            place = _end_of_quotes(text, place) + 1
        elif letter in _CLOSERS and (at_start or _CALL.match(text[start:].lstrip()) or _closes(text, place)):
            place = _end(text, place) + 1
        elif letter in "]}" or (letter in "[{" and "," in text[place:]):
            raise _Unclear(f"'{letter}' {'closes nothing' if letter in ']}' else 'is not closed'}")
        elif letter == ",":
            pieces.append(text[start:place].strip())
            start = place = place + 1
        else:
            place += 1
    pieces.append(text[start:].strip())
    if len(pieces) > 1 and "" in pieces:
        raise _Unclear("there is nothing beside one of its commas")
    return pieces


def _closes(text: str, start: int) -> bool:
    try:
        return _end(text, start) > start
    except _Unclear:
        return False


def _end(text: str, start: int) -> int:
    """Return where the bracket at `start` is closed."""
    waiting: list[str] = []
    place = start
    while place < len(text):
        letter = text[place]
        if letter == "\\":
            place += 1
        elif letter in "'\"" and text[start:place].rstrip().endswith(("[", ",", "(", ":", "{")):
            place = _end_of_quotes(text, place, ",:}" if waiting[-1] == "}" else f",{waiting[-1]}")
        elif letter in "[{" or (letter in "(" and (place == start or _closes_round(text, place))):
            waiting.append(_CLOSERS[letter])
        elif letter in "]}" or (letter == ")" and waiting[-1] == ")"):
            if letter != waiting.pop():
                raise _Unclear(f"'{letter}' closes nothing")
            if not waiting:
                return place
        place += 1
    opener = next(opener for opener, closer in _CLOSERS.items() if closer == waiting[-1])
    raise _Unclear(f"'{opener}' is not closed")


def _closes_round(text: str, start: int) -> bool:
    """Return whether a round bracket inside others is closed before they are."""
    stops = [text.find(letter, start) for letter in "()[]{}"[1:]]
    return ")" in text[start:] and text.find(")", start) == min(stop for stop in stops if stop > start)


def _end_of_quotes(text: str, start: int, after: str = ",") -> int:
    """Return where the quotes that open at `start` are closed; only blanks and what `after` holds may follow."""
    quote, place = text[start], start + 1
    while place < len(text) and text[place] != quote:
        place += 2 if text[place] == "\\" else 1
    if place >= len(text):
        raise _Unclear(f"the quote {quote} is not closed")
    rest = text[place + 1 :].lstrip()
    if rest and rest[0] not in after:
        raise _Unclear(f"'{rest[0]}' follows the closing quote {quote}")
    return place


def _unquoted(text: str) -> str:
    if text[:1] in ("'", '"'):
        quote = text[0]
        return re.sub(rf"(\\+)({quote})", lambda match: match[1][: len(match[1]) // 2] + match[2], text[1:-1])
    return _ESCAPED.sub(r"\1", text)
