"""Removal of secrets from everything that is uploaded."""

from __future__ import annotations

import re
from collections.abc import Mapping

REDACTED = "<redacted>"

# Whole words, so that text_key, tokenizer and tokens_per_step stay readable.
_SECRET_KEY = re.compile(
    r"(^|[_.\-])((api|access|private|secret|auth|account)_?key|token|secret|passwd|password|credentials?)$",
    re.IGNORECASE,
)
_URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
_URL_SIGNATURE = re.compile(r"([?&](?:sig|signature|token|key|api_?key|x-(?:amz|goog)-[\w-]+)=)[^&\s]+", re.IGNORECASE)
_KNOWN_TOKEN = re.compile(r"\b(?:hf_|gh[pousr]_|github_pat_|sk-|AKIA|wandb_v1_)[A-Za-z0-9_-]{12,}")


def redacted(config: Mapping[str, object]) -> dict[str, object]:
    """Return `config` without secrets: entries whose key names one, logins and signatures in URLs, known tokens.

    Mappings and sequences are searched to the bottom and come back as plain dicts and lists.
    """
    return {str(key): _redact(value, str(key)) for key, value in config.items()}


def _redact(value: object, key: str) -> object:
    if isinstance(value, Mapping):
        return redacted(value)
    if isinstance(value, (list, tuple)):
        return [_redact(entry, key) for entry in value]
    if value is not None and value != "" and _SECRET_KEY.search(key):
        return REDACTED
    if isinstance(value, str):
        text = _URL_LOGIN.sub(f"{REDACTED}@", value)
        text = _URL_SIGNATURE.sub(rf"\g<1>{REDACTED}", text)
        return _KNOWN_TOKEN.sub(REDACTED, text)
    return value
