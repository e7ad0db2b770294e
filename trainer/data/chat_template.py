"""The text that a chat becomes: the Jinja template that a tokenizer's files hold. No torch.

A template is code of whoever made the tokenizer. It is rendered in Jinja's sandbox, in which it can read its inputs and
nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from trainer.data.end_of_text import SETTINGS, ReadFile
from trainer.data.wording import reason
from trainer.errors import DataError

TEMPLATE_FILE = "chat_template.jinja"
TOKENS_FILE = "special_tokens_map.json"
KEY = "chat_template"
_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
_DEFAULT = "default"

Message = Mapping[str, Any]
"""At least `role` and `content`."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template with the special tokens that it may write."""

    source: str
    """The text of the template."""
    tokens: Mapping[str, str]
    """Name such as `bos_token` -> its text."""
    origin: str
    """The file that holds it, as errors name it."""

    def render(self, messages: Sequence[Message]) -> str:
        """Return the chat as text, up to where the answer begins.

        Raises:
            DataError: the template cannot be read, or refuses the messages.
        """
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _generation_tag()]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
        try:
            template = environment.from_string(self.source)
            return template.render(messages=[dict(one) for one in messages], add_generation_prompt=True, **self.tokens)
        # A template may do anything that Python's operators can fail at.
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise DataError(
                f"the chat template in {self.origin} must render the messages, but: {reason(error)}"
            ) from error


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _to_json(value: object, indent: int | None = None) -> str:
    # Jinja's own filter escapes what HTML must not hold.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _generation_tag() -> type[Any]:
    """Return an extension that knows `{% generation %}`, by which templates mark answers for training."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - as its base declares it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


def chat_template(read: ReadFile) -> ChatTemplate | None:
    """Return the chat template among a tokenizer's files, or None if they hold none.

    Args:
        read: reads the files beside the tokenizer.

    Raises:
        DataError: a file cannot be understood.
    """
    settings = _json(SETTINGS, read)
    source, origin = read(TEMPLATE_FILE), TEMPLATE_FILE
    if source is None:
        source, origin = _named(settings.get(KEY)), SETTINGS
    if source is None:
        return None
    found = {**_json(TOKENS_FILE, read), **settings}
    texts = {name: _text(found.get(name)) for name in _TOKENS}
    return ChatTemplate(source, {name: text for name, text in texts.items() if text is not None}, origin)


def _named(held: object) -> str | None:
    """Return the template that an entry holds; older files hold several with names."""
    if isinstance(held, list):
        named = {one.get("name"): one.get("template") for one in held if isinstance(one, Mapping)}
        held = named.get(_DEFAULT)
    return held if isinstance(held, str) else None


def _text(token: object) -> str | None:
    # Older files hold the token's text together with flags.
    token = token.get("content") if isinstance(token, Mapping) else token
    return token if isinstance(token, str) else None


def _json(file: str, read: ReadFile) -> Mapping[str, Any]:
    text = read(file)
    if text is None:
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} beside the tokenizer must be JSON, but is not: {reason(error)}") from error
    return content if isinstance(content, dict) else {}
