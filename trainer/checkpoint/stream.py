"""The error of a run that would go on with other tokens than it began with. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.config.places import source_key
from trainer.config.schema import TokenizerKind, TridentConfig
from trainer.errors import DataError


def other_tokens(
    config: TridentConfig, checkpoint: Path | None, changed: Sequence[str] = (), guessed_end: bool = False
) -> DataError:
    """Return the error that names the keys to change.

    Args:
        config: config of the run that is to go on.
        checkpoint: the checkpoint that it would go on from, if there is one.
        changed: keys of the data that have other values than before; none where the same files have other content.
        guessed_end: the run began with a version that took the first end-of-text token with a known name.
    """
    keys = " and ".join(changed) or source_key(config)
    hints = [
        f"put back the data, or give {keys} the value in the run's config.yaml" if changed else "put back the data"
    ]
    if any(key.startswith("data.blend") for key in changed):
        hints.insert(0, "of a blend, weights and schedule must be those that it began with, too")
    if guessed_end and config.tokenizer.kind is TokenizerKind.pretrained:
        hints.insert(
            0, "an earlier version began this run and guessed tokenizer.eos_token: set it to <|endoftext|> or </s>"
        )
    if checkpoint is not None:
        hints.append("to go on with these data from here on set data.on_change=continue")
        hints.append(f"to train on with other data set run_dir to another folder and checkpoint.resume={checkpoint}")
    hints.append("set run_dir to another folder to start anew")
    return DataError(
        f"{keys} must give the tokens that this run began with, wherever they lie, but "
        f"{'give' if len(changed) > 1 else 'gives'} others",
        hints,
    )
