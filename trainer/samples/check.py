"""The check that a run can write texts while it trains. No torch: it is made before a rank starts."""

from __future__ import annotations

from trainer.config.models import make_model
from trainer.config.schema import TridentConfig
from trainer.data.prepared import PreparedData
from trainer.data.tokenizer import load_tokenizer
from trainer.errors import ConfigError
from trainer.generation.continuation import prompt_ids

MAX_PARAMETERS = 1_000_000_000
"""Largest model. Each parameter takes up to 12 bytes on one rank's host, and all ranks wait while its CPU computes."""


def check_samples(prepared: PreparedData, config: TridentConfig, may_be_imported: bool = False) -> None:
    """Check that the model is small enough and that prompts and texts fit into its sequence length.

    Args:
        prepared: the data.
        config: the run's.
        may_be_imported: the weights may come from elsewhere; then prompts get special tokens, which are counted.

    Raises:
        ConfigError: they do not; one line for each problem.
    """
    texts, seq_length = config.eval, config.model.seq_length
    if texts.samples == 0:
        return
    problems = []
    parameters = make_model(config.model, prepared.vocab_size).parameter_count
    if parameters > MAX_PARAMETERS:
        problems.append(
            f"eval.samples needs a model of at most {MAX_PARAMETERS:,} parameters, since one rank puts it together on "
            f"its CPU, but this one has {parameters:,}; use eval.samples=0, and `trident generate` on its checkpoints"
        )
    assert prepared.tokenizer_folder is not None, "validation refuses data without a tokenizer"
    tokenizer = load_tokenizer(prepared.tokenizer_folder)
    for index, prompt in enumerate(texts.prompts):
        length = len(prompt_ids(tokenizer, prompt, may_be_imported))
        if length + texts.max_tokens > seq_length:
            problems.append(
                f"eval.prompts[{index}] ({length} tokens) and eval.max_tokens ({texts.max_tokens}) must fit into "
                f"model.seq_length ({seq_length}); shorten one of them"
            )
    if problems:
        raise ConfigError(problems)
