# ruff: noqa: E501 - messages are compared whole
"""Keys of chats and instructions that do not fit together are refused."""

from __future__ import annotations

import pytest

from trainer.config.keys import build
from trainer.config.plan import make_plan
from trainer.config.validate import problems

CHATS: dict[str, object] = {
    "name": "x",
    "run_dir": "x",
    "data.source": "files",
    "data.files": ["x.jsonl"],
    "data.records": "messages",
    "data.chat_template": "plain",
    "model.position": "rope",
}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"data.records": "text"}, "data.chat_template has no effect with data.records=text; leave it out"),
        ({"data.records": "text", "data.chat_template": None, "data.too_long": "drop"}, "data.too_long=drop has no effect with data.records=text, which is one stream of tokens; leave it out"),
        ({"data.prompt_key": "q"}, "data.prompt_key has no effect with data.records=messages; leave it out"),
        ({"data.text_key": "t"}, "data.text_key has no effect with data.records=messages; leave it out"),
        ({"data.source": "stdlib", "data.files": []}, "data.records=messages needs data.source=files or hub, but that is stdlib"),
        ({"tokenizer.kind": "bytes"}, "data.records=messages needs a tokenizer with special tokens, but tokenizer.kind=bytes has none that a chat template could write; use tokenizer=pretrained or bpe"),
        ({"data.chat_template": None}, "data.records=messages needs a chat template, which tokenizer.kind=bpe does not have; set data.chat_template=plain, or to a file"),
        ({"data.chat_template": " "}, "data.chat_template must not be empty"),
        ({"model.rope_scaling.kind": "dynamic", "model.rope_scaling.factor": 2.0, "model.rope_scaling.original_length": 64}, "model.seq_length (128) must be at most model.rope_scaling.original_length (64) for data.records=messages: model.rope_scaling.kind=dynamic rotates by the length of a text, and examples share a sequence"),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit_together(changes: dict[str, object], problem: str) -> None:
    assert problems(build({**CHATS, "model.seq_length": 128, **changes})) == [problem]


DYNAMIC: dict[str, object] = {
    "model.seq_length": 128,
    "model.position": "rope",
    "model.rope_scaling.kind": "dynamic",
    "model.rope_scaling.factor": 2.0,
    "model.rope_scaling.original_length": 64,
}


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({**CHATS, "data.mask_documents": True}, "data.mask_documents=true has no effect with data.records=messages, which never see each other; leave it out"),
        ({**CHATS, "data.boundary_label": "ignore"}, "data.boundary_label=ignore has no effect with data.records=messages, which never see each other; leave it out"),
        ({"data.source": "synthetic", "model.vocab_size": 300, "data.mask_documents": True}, "data.mask_documents=true has no effect with data.source=synthetic, which has no documents; leave it out"),
        ({"data.source": "synthetic", "model.vocab_size": 300, "data.boundary_label": "ignore"}, "data.boundary_label=ignore has no effect with data.source=synthetic, which has no documents; leave it out"),
        ({**DYNAMIC, "data.mask_documents": True}, "model.seq_length (128) must be at most model.rope_scaling.original_length (64) for data.mask_documents=true: model.rope_scaling.kind=dynamic rotates by the length of a text, and documents share a sequence"),
    ],
)  # fmt: skip
def test_documents_are_kept_apart_only_where_a_stream_of_text_has_some(keys: dict[str, object], problem: str) -> None:
    assert problems(build({"name": "x", "run_dir": "x", **keys})) == [problem]
    allowed = {**keys, "data.mask_documents": False, "data.boundary_label": "keep"}
    assert problems(build({"name": "x", "run_dir": "x", **allowed})) == []


def test_a_plan_knows_whether_sequences_hold_documents() -> None:
    model: dict[str, object] = {"model.seq_length": 32, "model.sliding_window": 8, "batch.micro_batch_size": 2}
    model |= {"model.layer_pattern": ["window", "full"], "model.position": "rope"}
    chats = build({**CHATS, **model})
    assert problems(chats) == []
    plan, plain = make_plan(chats, 300), make_plan(build({"name": "x", "run_dir": "x", **model}), 300)
    assert (plan.execution.documents, plain.execution.documents) == (True, False)
    masked = make_plan(build({"name": "x", "run_dir": "x", "data.mask_documents": True, **model}), 300)
    assert masked.execution.documents
