"""The text that a chat becomes: the Jinja template that a tokenizer's files hold. No torch.

A template is code of whoever made the tokenizer. It is rendered in Jinja's sandbox, in which it can read its inputs and
nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from trainer.corpus.wording import reason
from trainer.data.end_of_text import SETTINGS, ReadFile
from trainer.errors import DataError

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE_FILE = "chat_template.jinja"
TOKENS_FILE = "special_tokens_map.json"
KEY = "chat_template"
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['tool_calls'] %}{{ raise_exception('it has no form for tool_calls') }}{% endif %}"
    "{{ message['role'] + ':\\n' + message['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)
"""A template for tokenizers without one, which users ask for by name: a line with the role, the content, and the token
that ends a text."""
_BEGIN, _END = "\ue000trident-answer-begins\ue001", "\ue000trident-answer-ends\ue001"
"""Texts around what `{% generation %}` marks, with characters of the private use area; no chat may hold them."""
_HAS_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
_DEFAULT = "default"

Message = Mapping[str, Any]
"""At least `role` and `content`."""
_TOO_MUCH = (RecursionError, MemoryError)
"""Faults of a template that asks for more than there is."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template with the special tokens that it may write."""

    source: str
    """The text of the template."""
    tokens: Mapping[str, str]
    """Name such as `bos_token` -> its text."""
    origin: str
    """The file that holds it, as errors name it."""

    @property
    def marks_answers(self) -> bool:
        """True if the template says by `{% generation %}` which part of its text is an answer."""
        return _HAS_MARKS.search(self.source) is not None

    def render(self, messages: Sequence[Message]) -> str:
        """Return the chat as text, up to where the answer begins.

        Raises:
            DataError: the template cannot be read, or refuses the messages.
        """
        now = {"strftime_now": lambda form: datetime.now().strftime(form)}
        return self._rendered(messages, is_marked=False, add_generation_prompt=True, **now)

    def whole(self, messages: Sequence[Message], begins_answer: bool = False, **variables: Any) -> str:
        """Return the chat as the text that a model learns from: the same whenever it is made, so it knows no date.

        Args:
            messages: all of them, or the first ones.
            begins_answer: end with what comes before an answer.
            variables: further variables of the template, such as tools.

        Raises:
            DataError: as `render`.
        """
        return self._rendered(messages, is_marked=False, add_generation_prompt=begins_answer, **variables)

    def marked(self, messages: Sequence[Message], **variables: Any) -> tuple[str, list[tuple[int, int]]]:
        """Return the text that `whole` returns, and where in it an answer begins and ends, as the template marks it.

        Raises:
            DataError: as `render`, or the text holds what marks answers here.
        """
        text = self._rendered(messages, is_marked=True, add_generation_prompt=False, **variables)
        plain, spans = "", list[tuple[int, int]]()
        begin: int | None = None
        for part in re.split(f"({_BEGIN}|{_END})", text):
            if part not in (_BEGIN, _END):
                plain += part
            elif begin is None:
                begin = len(plain)
            else:
                spans.append((begin, len(plain)))
                begin = None
        if begin is not None or plain != self.whole(messages, **variables):
            raise DataError(
                f"the chat template in {self.origin} must write the same with and without marks of answers, but does "
                "not; take {% generation %} out of it"
            )
        return plain, [span for span in spans if span[0] < span[1]]

    def _rendered(self, messages: Sequence[Message], is_marked: bool, **variables: Any) -> str:
        from jinja2 import TemplateError

        try:
            template = _compiled(self.source, is_marked)
            return template.render(messages=[dict(one) for one in messages], **{**self.tokens, **variables})
        # A template may do anything that Python's operators can fail at.
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, *_TOO_MUCH) as error:
            raise DataError(
                f"the chat template in {self.origin} must render the messages, but: {reason(error)}"
            ) from error


@lru_cache(maxsize=4)
def _compiled(source: str, is_marked: bool) -> Template:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _generation_tag(is_marked)]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(source)


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _to_json(value: object, indent: int | None = None) -> str:
    # Jinja's own filter escapes what HTML must not hold.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _generation_tag(is_marked: bool) -> type[Any]:
    """Return an extension that knows `{% generation %}`, by which templates mark answers, and may write marks there."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - as its base declares it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            if not is_marked:
                return body
            begin, end = (nodes.Output([nodes.TemplateData(mark)], lineno=line) for mark in (_BEGIN, _END))
            return [begin, *body, end]

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
    return ChatTemplate(source, special_texts(read), origin)


def special_texts(read: ReadFile) -> dict[str, str]:
    """Return the special tokens that a tokenizer's files name: `bos_token` -> its text.

    Raises:
        DataError: a file cannot be understood.
    """
    found = {**_json(TOKENS_FILE, read), **_json(SETTINGS, read)}
    texts = {name: _text(found.get(name)) for name in _TOKENS}
    return {name: text for name, text in texts.items() if text is not None}


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
