"""Candidates for the word at the cursor of a command line. Answers within a blink: no torch, no Hydra."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from trainer.errors import TridentError
from trainer.verbs.complete_paths import folders, paths, runs
from trainer.verbs.complete_settings import settings
from trainer.verbs.declare import Option, Takes, Verb
from trainer.verbs.found import Found
from trainer.verbs.table import COMMAND_OPTIONS, NAMES, find_verb, named_verb, verbs_below
from trainer.verbs.typed import read_line


def candidates(words: Sequence[str], current: str) -> list[Found]:
    """Return the words that the word at the cursor can become, without repetition.

    Args:
        words: the words before it, without `trident`.
        current: the part of it that is typed.
    """
    try:
        found = list(_candidates(words, current))
    except (TridentError, OSError):
        # A mistake in the words, or a folder that cannot be read, is reported when the command is run.
        return []
    return list({one.text: one for one in found if one.text.startswith(current) or one.is_guess}.values())


def _candidates(words: Sequence[str], current: str) -> Iterator[Found]:
    if not words:
        for name in NAMES:
            if " " not in name:
                yield Found(name, find_verb(name).summary)
        for option in COMMAND_OPTIONS:
            yield Found(option.name, option.sentence)
        return
    if words[0] in ("--install-completion", "--show-completion"):
        yield from _option_values(next(one for one in COMMAND_OPTIONS if one.name == words[0]), current)
        return
    if words[0] not in NAMES:
        return
    name, rest = named_verb(words)
    verb = find_verb(name)
    if not rest:
        for below in verbs_below(name):
            yield Found(below, find_verb(f"{name} {below}").summary)
    waiting = verb.option(rest[-1]) if rest else None
    if waiting is not None and waiting.takes is not Takes.nothing:
        yield from _option_values(waiting, current)
    elif current.startswith("-"):
        yield from _options(verb, rest, current)
    else:
        yield from _words(verb, _without_options(verb, rest), rest, current)


def _options(verb: Verb, rest: Sequence[str], current: str) -> Iterator[Found]:
    name, equals, value = current.partition("=")
    option = verb.option(name)
    if equals and option is not None:
        yield from (replace(one, text=f"{name}={one.text}") for one in _option_values(option, value))
        return
    given = {word.partition("=")[0] for word in rest}
    for one in verb.options:
        names = (one.name, *one.aliases)
        if one.is_hidden or (given & set(names) and not one.repeats):
            continue
        yield from (Found(each, one.sentence) for each in names)
    yield Found("--help", "explain the verb")
    if verb.takes_settings and len(current) > 2 and current.startswith("--"):
        found = settings(current.removeprefix("--"), rest)
        yield from (replace(one, text=f"--{one.text}") for one in found if not one.is_guess)


def _option_values(option: Option, value: str) -> Iterator[Found]:
    if option.choices:
        yield from (Found(choice) for choice in option.choices)
        return
    yield from _values(option.takes, value)


def _values(takes: Takes, value: str) -> Iterator[Found]:
    if takes is Takes.folder:
        yield from folders(value)
    elif takes is Takes.file:
        yield from paths(value)
    elif takes is Takes.run:
        yield from runs(value)
    elif takes is Takes.key:
        yield from (replace(one, text=one.text.removesuffix("="), is_open=False) for one in settings(value, ()))


def _words(verb: Verb, given: Sequence[str], rest: Sequence[str], current: str) -> Iterator[Found]:
    if len(given) < len(verb.positionals):
        positional = verb.positionals[len(given)]
        if positional.choices is not None:
            yield from (Found(name, sentence) for name, sentence in positional.choices.items())
        yield from _values(positional.takes, current)
        return
    name, equals, value = current.partition("=")
    for key in verb.keys:
        if equals and key.name == name:
            yield from (replace(one, text=f"{name}={one.text}") for one in _values(key.takes, value))
        elif not equals and not any(word.startswith(f"{key.name}=") for word in given):
            yield Found(f"{key.name}=", key.sentence, is_open=True)
    if verb.takes_settings:
        yield from settings(current, rest)


def _without_options(verb: Verb, rest: Sequence[str]) -> list[str]:
    """Return the words that are neither options nor their values."""
    kept: list[str] = []
    before: Option | None = None
    for word in rest:
        is_value = before is not None and before.takes is not Takes.nothing
        before = None if is_value else verb.option(word)
        kept += [] if is_value or word.startswith("-") else [word]
    return kept


def answer(shell: str, words: Sequence[str]) -> Iterator[str]:
    """Yield the lines of `trident --complete SHELL ...`, as the shell's own function reads them.

    Args:
        shell: bash gives the line up to the cursor and COMP_WORDBREAKS, and gets `open` or `closed` and the text to
            insert; fish and zsh give the word at the cursor and those before it, and get words with their sentences.
        words: the words that the shell's function gives.
    """
    if shell == "bash":
        yield from _for_bash(*words)
        return
    current = read_line(words[0]).current if shell == "fish" else words[0]
    for one in candidates(words[1:], current):
        columns = [one.text, " ".join(one.sentence.split())]
        columns += (["open" if one.is_open else "closed"]) if shell == "zsh" else []
        if not set("\t\n\r") & set(one.text):
            yield "\t".join(columns)


def _for_bash(line: str, breaks: str) -> Iterator[str]:
    typed = read_line(line, breaks)
    found = candidates(typed.words[1:], typed.current)
    # bash would replace what was typed by the beginning that several guesses have in common.
    guesses = [one for one in found if one.is_guess]
    found = [one for one in found if not one.is_guess or len(guesses) == 1]
    insertions = [(typed.insertion(one.text), one.is_open) for one in found if "\n" not in one.text]
    texts = [(text, is_open) for text, is_open in insertions if text is not None]
    is_open = len(texts) == 1 and texts[0][1]
    yield "open" if is_open else "closed"
    yield from (text for text, _ in texts)
    if is_open and typed.quote:
        # For a single candidate bash would close the quote; of two it inserts what they have in common.
        yield f"{texts[0][0]} "
