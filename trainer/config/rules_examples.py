"""Rules about chats and instructions: data of examples, of which only the answers count."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.plan import keeps_documents_apart
from trainer.config.rules_common import Case, Rule
from trainer.config.schema import DataConfig, DataSource, RecordKind, RopeScalingKind, TokenizerKind

_READ = {
    "text_key": RecordKind.text,
    "text_join": RecordKind.text,
    "document_separator": RecordKind.text,
    "messages_key": RecordKind.messages,
    "chat_template": RecordKind.messages,
    "prompt_key": RecordKind.prompt_completion,
    "completion_key": RecordKind.prompt_completion,
}
"""Key below `data` -> the records that are read with it."""
_BY_LENGTH = (RopeScalingKind.dynamic, RopeScalingKind.longrope)


def read_keys(case: Case) -> Iterator[str]:
    """No key is given that does not belong to the kind of record."""
    data, default = case.config.data, DataConfig()
    for name, reader in _READ.items():
        if reader is not data.records and getattr(data, name) != getattr(default, name):
            yield f"data.{name} has no effect with data.records={data.records.value}; leave it out"
    if data.records is RecordKind.text and data.too_long is not default.too_long:
        yield (
            f"data.too_long={data.too_long.value} has no effect with data.records=text, which is one stream of tokens; "
            "leave it out"
        )


def boundaries(case: Case) -> Iterator[str]:
    """Documents are kept apart only where a stream of text has some."""
    data, default = case.config.data, DataConfig()
    for name in ("packing", "mask_documents", "boundary_label"):
        value = getattr(data, name)
        if value is getattr(default, name):
            continue
        shown = "true" if value is True else value.value
        if data.records is not RecordKind.text:
            yield (
                f"data.{name}={shown} has no effect with data.records={data.records.value}, which never see each "
                "other; leave it out"
            )
        elif data.source is DataSource.synthetic:
            yield f"data.{name}={shown} has no effect with data.source=synthetic, which has no documents; leave it out"


def sources_of_examples(case: Case) -> Iterator[str]:
    """Examples are objects of files or of a data set, and a chat ends its answers with a special token."""
    data, kind = case.config.data, case.config.tokenizer.kind
    if data.records is RecordKind.text:
        return
    if data.source not in (DataSource.files, DataSource.hub):
        yield f"data.records={data.records.value} needs data.source=files or hub, but that is {data.source.value}"
    if data.records is not RecordKind.messages:
        return
    if kind is TokenizerKind.bytes:
        yield (
            "data.records=messages needs a tokenizer with special tokens, but tokenizer.kind=bytes has none that a "
            "chat template could write; use tokenizer=pretrained or bpe"
        )
    if kind is TokenizerKind.bpe and data.chat_template is None:
        yield (
            "data.records=messages needs a chat template, which tokenizer.kind=bpe does not have; set "
            "data.chat_template=plain, or to a file"
        )


def lengths_of_examples(case: Case) -> Iterator[str]:
    """No frequency of the rotation depends on how long the sequence is that a text shares with others."""
    model, data = case.config.model, case.config.data
    scaling = model.rope_scaling
    original = scaling.original_length
    if not keeps_documents_apart(data) or scaling.kind not in _BY_LENGTH or original is None:
        return
    is_text = data.records is RecordKind.text
    key, shared = (
        ("data.mask_documents=true", "documents") if is_text else (f"data.records={data.records.value}", "examples")
    )
    if model.seq_length > original:
        yield (
            f"model.seq_length ({model.seq_length}) must be at most model.rope_scaling.original_length ({original}) "
            f"for {key}: model.rope_scaling.kind={scaling.kind.value} rotates by the "
            f"length of a text, and {shared} share a sequence"
        )


RULES: tuple[Rule, ...] = (read_keys, boundaries, sources_of_examples, lengths_of_examples)
