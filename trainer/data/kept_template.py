"""The chat template that examples are learned with, kept beside their tokenizer. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.config.schema import TridentConfig
from trainer.data.chat_template import KEY
from trainer.data.end_of_text import SETTINGS
from trainer.data.examples import template_of
from trainer.data.tokenizer import FileTokenizer, Tokenizer
from trainer.files import write_atomically


def keep_template(config: TridentConfig, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the template that chats are learned with into the folder of the tokenizer, for those who write with it.

    Raises:
        DataError: as `template_of`.
    """
    eos_token = tokenizer.eos_token if isinstance(tokenizer, FileTokenizer) else None
    template = template_of(config, tokenizer.read, eos_token)
    if template is None:
        return
    file = folder / SETTINGS
    held = json.loads(file.read_text(encoding="utf-8"))
    write_atomically(file, json.dumps({**template.tokens, **held, KEY: template.source}, ensure_ascii=False) + "\n")
