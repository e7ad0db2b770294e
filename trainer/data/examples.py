"""Examples that a model learns answers from: chats, and prompts with their completions. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.keys import joined
from trainer.config.places import PLAIN, local_path
from trainer.config.schema import DataConfig, OnBadRecord, RecordKind, TridentConfig
from trainer.corpus.document import Record
from trainer.corpus.read import records
from trainer.corpus.wording import listed, reason
from trainer.data.chat_template import PLAIN_TEMPLATE, ChatTemplate, Message, chat_template, special_texts
from trainer.data.end_of_text import END_OF_TEXT, ReadFile, beside, nothing_beside
from trainer.data.pretrained_tokenizer import pretrained_file
from trainer.data.split import TRAIN_PART, Fractions, utf8
from trainer.errors import DataError

ROLES = ("system", "user", "assistant", "tool")
ANSWERS = "assistant"
"""The role whose messages are learned."""
_TOOLS = "tools"


@dataclass(frozen=True)
class Example:
    """A text with the spans of it that are answers."""

    origin: str
    """Its place, as errors name it."""
    text: str
    spans: tuple[tuple[int, int], ...]
    """First character of each answer, and the one behind it; in order."""
    ends: bool
    """True if the token that ends a text follows, and counts. A chat ends as its template says."""
    may_trim: bool
    """True if what follows the last special token of an answer, where it is only white space, is no part of it."""


def record_keys(data: DataConfig) -> dict[str, str]:
    """Return key of the config -> name of a field that every record must have."""
    if data.records is RecordKind.prompt_completion:
        return {"data.prompt_key": data.prompt_key, "data.completion_key": data.completion_key}
    return {"data.messages_key": data.messages_key}


def example_of(data: DataConfig, record: Record, template: ChatTemplate | None) -> Example:
    """Return the example of a record.

    Args:
        data: keys of a config with data.records=messages or prompt_completion.
        record: the record.
        template: makes a text of a chat; None for prompts and completions.

    Raises:
        DataError: the record is not of the form, has an unknown role, or the template cannot render it.
    """
    if data.records is RecordKind.prompt_completion:
        return _completed(record, data)
    assert template is not None, "chats have one"
    messages = _messages(record, data.messages_key)
    tools = record.fields.get(_TOOLS)
    try:
        return _chat(str(record.origin), messages, template, {} if tools is None else {_TOOLS: tools})
    except DataError as error:
        raise DataError(f"{record.origin}: {error}", error.hints) from error


def examples(data: DataConfig, template: ChatTemplate | None) -> Iterator[Example]:
    """Yield the examples of a source, in a fixed order, without bad ones if they shall be left out.

    Args:
        data: keys of a config with data.records=messages or prompt_completion.
        template: makes a text of a chat; None for prompts and completions.

    Raises:
        DataError: a record cannot be read, or as `example_of`.
    """
    for record in records(data, record_keys(data)):
        try:
            yield example_of(data, record, template)
        except DataError:
            if data.on_bad_record is OnBadRecord.error:
                raise


def training_texts(config: TridentConfig) -> Iterator[str]:
    """Yield the texts of the examples that are not held out, for a tokenizer that is trained on them.

    Raises:
        DataError: as `examples`, or there is no template for chats.
    """
    data = config.data
    fractions = Fractions(data.validation_fraction, data.test_fraction)
    for example in examples(data, template_of(config, nothing_beside, END_OF_TEXT)):
        if fractions.part_of(utf8(example.text)) == TRAIN_PART:
            yield example.text.replace(END_OF_TEXT, "\n")


def template_of(config: TridentConfig, read: ReadFile, eos_token: str | None) -> ChatTemplate | None:
    """Return the template that makes texts of chats, as `data.chat_template` says; None where there are no chats.

    Args:
        config: a validated config.
        read: reads the files beside the tokenizer.
        eos_token: the token that ends a text, for a template that is not the tokenizer's own.

    Raises:
        DataError: the tokenizer has none and none is named, or the file of the named one cannot be read.
    """
    if config.data.records is not RecordKind.messages:
        return None
    own = chat_template(read)
    named = config.data.chat_template
    if named is None:
        if own is None:
            raise DataError(
                "data.records=messages needs a tokenizer with a chat template, but this one has none (chat_template in "
                "tokenizer_config.json, or chat_template.jinja); set data.chat_template to a file with one, or to "
                f"{PLAIN}"
            )
        return own
    tokens = special_texts(read)
    if eos_token is not None:
        tokens.setdefault("eos_token", eos_token)
    return ChatTemplate(_source(named), tokens, f"data.chat_template={named}")


def examples_identity(config: TridentConfig) -> list[object]:
    """Return the values that decide the sequences of examples, besides files and tokenizer.

    Raises:
        DataError: the file of a chat template cannot be read.
    """
    data = config.data
    keys = [data.messages_key, data.prompt_key, data.completion_key]
    if data.records is not RecordKind.messages:
        template = None
    elif data.chat_template is not None:
        template = _source(data.chat_template)
    else:
        file = pretrained_file(str(config.tokenizer.path)) if config.tokenizer.path else None
        own = None if file is None else chat_template(beside(file))
        template = None if own is None else own.source
    return [data.records.value, *keys, template, data.too_long.value, config.model.seq_length]


def _source(named: str) -> str:
    if named == PLAIN:
        return PLAIN_TEMPLATE
    path = Path(local_path(named, "data.chat_template"))
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"data.chat_template must be {PLAIN} or a file that can be read, but {path}: {reason(error)}"
        ) from error


def _completed(record: Record, data: DataConfig) -> Example:
    texts = []
    for key, name in (("prompt_key", data.prompt_key), ("completion_key", data.completion_key)):
        text = record.fields.get(name)
        if not isinstance(text, str):
            raise DataError(f"{record.origin} must have a text in data.{key}={name}, but {_found(record, name)}")
        texts.append(text)
    prompt, completion = texts
    if not completion:
        raise DataError(f"{record.origin} must have a completion, but data.completion_key={data.completion_key} is ''")
    text = prompt + completion
    return Example(str(record.origin), text, ((len(prompt), len(text)),), ends=True, may_trim=False)


def _found(record: Record, name: str) -> str:
    if name in record.fields:
        return f"has {type(record.fields[name]).__name__} there"
    return f"has the keys {listed(sorted(map(str, record.fields)))}"


def _messages(record: Record, key: str) -> list[Message]:
    held = record.fields.get(key)
    if not isinstance(held, list) or not held:
        found = "is empty there" if held == [] else _found(record, key)
        raise DataError(f"{record.origin} must have a list of messages in data.messages_key={key}, but {found}")
    messages = [_message(one, f"message {index} of {record.origin}") for index, one in enumerate(held, start=1)]
    if not any(one["role"] == ANSWERS for one in messages):
        raise DataError(f"{record.origin} must have a message with role {ANSWERS}, from which the model learns")
    return messages


def _message(one: object, origin: str) -> Message:
    if not isinstance(one, Mapping) or "role" not in one:
        found = (
            f"has the keys {listed(sorted(map(str, one)))}" if isinstance(one, Mapping) else f"is {type(one).__name__}"
        )
        raise DataError(f"{origin} must be an object with role and content, but {found}")
    # Columns of a table have all keys that any message has.
    message: dict[str, Any] = {str(key): value for key, value in one.items() if value is not None}
    if message.get("role") not in ROLES:
        raise DataError(f"role of {origin} must be {joined(ROLES)}, but is {one['role']!r}")
    calls_tools = message["role"] == ANSWERS and message.get("tool_calls")
    if not isinstance(message.get("content"), str) and not calls_tools:
        raise DataError(f"content of {origin} must be a text, but is {type(one.get('content')).__name__}")
    return {"content": "", **message}


def _chat(origin: str, messages: list[Message], template: ChatTemplate, variables: Mapping[str, Any]) -> Example:
    if template.marks_answers:
        text, spans = template.marked(messages, **variables)
        if not spans:
            raise DataError(f"the chat template in {template.origin} must mark an answer, but marks none")
        return Example(origin, text, tuple(spans), ends=False, may_trim=False)
    text = template.whole(messages, **variables)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != ANSWERS:
            continue
        before = template.whole(messages[:index], begins_answer=True, **variables)
        after = template.whole(messages[: index + 1], **variables)
        if not (after.startswith(before) and text.startswith(after)):
            raise DataError(
                f"the chat template in {template.origin} must write an answer behind what it writes before it, and "
                f"leave it so when messages follow, but does not with message {index + 1}; mark answers in it with "
                "{% generation %}, and name its file in data.chat_template"
            )
        spans.append((len(before), len(after)))
    return Example(origin, text, tuple(spans), ends=False, may_trim=True)
