"""Token ids must be rows of the embedding, labels too if they count."""

from __future__ import annotations

import torch

from trainer.errors import DataError
from trainer.micro_batch import IGNORED


def check_token_ids(ids: torch.Tensor, vocab_size: int) -> None:
    """Check on CPU that ids are in [0, vocab_size). On an accelerator the check would sync the host: not made.

    Raises:
        DataError: an id is outside.
    """
    if ids.device.type != "cpu" or ids.numel() == 0:
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise DataError(
            f"token ids must be in [0, {vocab_size}), but are in [{low}, {high}]; "
            "model.vocab_size does not fit the data"
        )


def check_labels(labels: torch.Tensor, vocab_size: int) -> None:
    """Check labels like token ids; `IGNORED` ones are none.

    Raises:
        DataError: a label is outside.
    """
    if labels.device.type == "cpu":
        check_token_ids(labels[labels != IGNORED], vocab_size)
