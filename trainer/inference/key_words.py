"""Options of the verbs that use a model, as key=value like those of every other verb. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

from trainer.config.nearness import nearest
from trainer.config.other_names import Meaning
from trainer.errors import ConfigError

T = TypeVar("T")
CHECKPOINT, SETTINGS = "checkpoint", "settings"
_TRUTHS = {"true": True, "false": False}


@dataclass(frozen=True)
class KeyWords(Generic[T]):
    """The keys of a verb: the fields of a dataclass, whose defaults say their types.

    The first word is the `checkpoint`, unless it is a key=value. `settings` takes the words of the config.
    """

    kind: type[T]
    """The dataclass. It is mutable, and every field has a default."""
    groups: tuple[str, ...]
    """Groups of the config whose keys are taken too."""
    other_names: Mapping[str, Meaning]
    """Names elsewhere -> their counterparts here."""
    repeated: tuple[str, ...] = ()
    """Keys with a text, that may be given several times."""
    lists: tuple[str, ...] = ()
    """Keys with names that commas separate, that may be given several times."""
    numbers: tuple[str, ...] = ()
    """Keys with whole numbers that commas separate."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the verb's own."""
        return tuple(field.name for field in fields(self.kind) if field.name != SETTINGS)  # type: ignore[arg-type]

    def parse(self, arguments: Sequence[str], verb: str, problems_of: Callable[[T], list[str]]) -> T:
        """Return the options.

        Args:
            arguments: the words.
            verb: the verb, whose help lists the keys.
            problems_of: returns what is wrong with the values.

        Raises:
            ConfigError: names every unknown key, wrong type and value out of range.
        """
        options, problems = self._read(arguments)
        problems += problems_of(options)
        if problems:
            raise ConfigError(problems, hints=[f"see `trident {verb} --help`"])
        return options

    def _read(self, arguments: Sequence[str]) -> tuple[T, list[str]]:
        values: dict[str, list[str]] = {}
        settings: list[str] = []
        problems: list[str] = []
        words = list(arguments)
        if words and "=" not in words[0] and words[0].strip("-") == words[0] != "":
            values[CHECKPOINT] = [words.pop(0)]
        is_named = bool(values)
        while words:
            word = words.pop(0)
            key, equals, value = word.partition("=")
            if key.startswith("--") and len(key) > 2:
                # `--top-k=40` and `--top-k 40`, as other programs take them.
                key = key.removeprefix("--").replace("-", "_")
                if not equals and words and self._can_be_value(words[0], key):
                    equals, value = "=", words.pop(0)
                elif not equals and self._is_flag(key):
                    equals, value = "=", "true"
            if equals and key.partition(".")[0] in self.groups and key not in self.keys:
                settings.append(f"{key}={value}")
            elif equals and key == CHECKPOINT and is_named:
                problems.append(f"checkpoint must be given once, but is {values[key][0]!r} and {value!r}")
            elif equals and key in self.keys:
                values.setdefault(key, []).append(value)
            elif equals or word.startswith("--"):
                problems.append(self._unknown(key, value))
            else:
                problems.append(f"an option must be key=value, but is {word!r}")
        found: Any = self.kind()
        found.settings = tuple(settings)
        problems += [problem for key, texts in values.items() if (problem := self._set(found, key, texts))]
        return found, problems

    def _is_flag(self, key: str) -> bool:
        return isinstance(getattr(self.kind, key, None), bool)

    def _can_be_value(self, word: str, key: str) -> bool:
        if self._is_flag(key):
            return word in _TRUTHS
        return word.partition("=")[0] not in self.keys and not word.startswith("--")

    def _set(self, options: object, key: str, texts: Sequence[str]) -> str:
        """Set an option to its value, the last one of several; return the problem, or ''."""
        default = getattr(self.kind, key)
        if key in self.repeated:
            setattr(options, key, tuple(texts))
            return ""
        if key in self.lists:
            setattr(options, key, tuple(one for text in texts for one in text.strip("[]").split(",")))
            return ""
        text = texts[-1]
        if isinstance(default, bool):
            if text not in _TRUTHS:
                return f"{key} must be true or false, but is {text!r}"
            setattr(options, key, _TRUTHS[text])
            return ""
        try:
            if key in self.numbers:
                setattr(options, key, tuple(int(one) for one in text.split(",")))
            else:
                setattr(options, key, type(default)(text))
        except ValueError:
            wanted = "whole numbers with commas" if key in self.numbers else f"of type {type(default).__name__}"
            return f"{key} must be {wanted}, but is {text!r}"
        return ""

    def _unknown(self, key: str, value: str) -> str:
        plain = key.lower().replace("-", "_")
        if plain in self.keys:
            wanted = (
                f"did you mean {plain}={value}?" if value else f"it must be followed by its value, as in {plain}=..."
            )
        elif plain in self.other_names:
            wanted = self.other_names[plain].told(value)
        else:
            close = nearest(plain, self.keys)
            wanted = f"did you mean {close}?" if close else f"use one of {', '.join(self.keys)}"
        return f"there is no option {key!r}; {wanted}"
