from __future__ import annotations

import pytest

from trainer.metrics.redact import REDACTED, redacted


@pytest.mark.parametrize(
    "key", ["api_key", "WANDB_API_KEY", "hf_token", "token", "password", "client_secret", "aws.secret_key", "apikey"]
)
def test_entries_that_name_a_secret_are_hidden(key: str) -> None:
    assert redacted({"outer": {key: "s3cr3t"}}) == {"outer": {key: REDACTED}}


def test_ordinary_entries_stay() -> None:
    config = {
        "tokenizer": {"kind": "bpe"},
        "tokens_per_step": 2048,
        "synthetic_tokens": 1,
        "text_key": "text",
        "num_key_value_heads": 4,
        "files": ["a.txt", "b/*.jsonl"],
        "url": "https://example.org/data?page=2",
        "hf_token": None,
        "password": "",
    }
    assert redacted(config) == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://user:pw@host/x", f"https://{REDACTED}@host/x"),
        ("s3://b/k?X-Amz-Signature=abc&page=1", f"s3://b/k?X-Amz-Signature={REDACTED}&page=1"),
        ("use hf_abcdefghijklmnopqr now", f"use {REDACTED} now"),
    ],
)
def test_secrets_inside_text_are_hidden(text: str, expected: str) -> None:
    assert redacted({"files": (text,)}) == {"files": [expected]}
