"""A command line that is being typed, split into words as a shell would. No torch."""

from __future__ import annotations

from dataclasses import dataclass

_SPECIAL = frozenset(" \t\n\"'\\$`&;|<>()*?[]{}~#!^")
"""Signs that an unquoted word cannot hold unescaped."""


@dataclass(frozen=True)
class Typed:
    """The words before the cursor."""

    words: tuple[str, ...]
    """Whole words, without their quotes."""
    current: str
    """The word at the cursor, without its quotes."""
    kept: str
    """The beginning of `current` that the shell leaves as it is; it replaces the rest."""
    quote: str
    """The quote that is open at the cursor, or nothing."""

    def insertion(self, word: str) -> str | None:
        """Return the text that the shell has to insert for `word`, quoted; None if the word begins otherwise."""
        if not word.startswith(self.kept):
            return None
        rest = word.removeprefix(self.kept)
        if self.quote == "'":
            return rest.replace("'", "'\\''")
        if self.quote == '"':
            return "".join(f"\\{letter}" if letter in '"$`\\' else letter for letter in rest)
        return "".join(f"\\{letter}" if letter in _SPECIAL else letter for letter in rest)


def read_line(line: str, breaks: str = "") -> Typed:
    """Return the words of a line up to the cursor, which is at its end.

    Args:
        line: as it was typed.
        breaks: letters at which the shell begins a word that it completes, bash's COMP_WORDBREAKS.
    """
    words: list[str] = []
    current, kept, quote = "", "", ""
    is_word = False
    letters = iter(line)
    for letter in letters:
        if quote:
            if letter == quote:
                quote = ""
            elif letter == "\\" and quote == '"':
                following = next(letters, "")
                current += following if following in '"$`\\' else letter + following
            else:
                current += letter
            continue
        if letter.isspace():
            words += [current] if is_word else []
            current, kept, is_word = "", "", False
            continue
        is_word = True
        if letter in "'\"":
            # The shell completes what stands behind the quote.
            quote, kept = letter, current
            continue
        current += next(letters, "") if letter == "\\" else letter
        if letter in breaks and letter not in "'\"\\":
            kept = current
    return Typed(tuple(words), current, kept, quote)
