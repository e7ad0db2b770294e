"""`trident import`: a Hugging Face model as a run folder."""

from __future__ import annotations

from trainer.verbs.declare import Key, Positional, Takes, Verb
from trainer.verbs.parse import Words


def run(words: Words) -> int:
    """Write the run folder."""
    from trainer.importing import import_verb

    return import_verb(words.rest)


VERB = Verb(
    name="import",
    summary="write a Hugging Face model as a run folder",
    run=run,
    positionals=(
        Positional(
            "SRC", "folder with config.json and weights, name of a model on the hub, or GGUF file", Takes.folder
        ),
        Positional("DST", "the folder of a run, which must not hold one yet", Takes.folder),
    ),
    keys=(
        Key("check", "compare the logits with transformers', and write nothing if they differ", Takes.text, "true"),
        Key("seq_length", "tokens in a sequence of the run", Takes.number, "as the model was made for"),
    ),
    text=(
        "Writes DST/checkpoints/step_0 with config.yaml, tokenizer and the model's other small files beside it, tensor "
        "by tensor. DST is what `trident generate`, `trident export` and `trident train checkpoint.init_from=DST` "
        "take. Training needs no import: checkpoint.init_from=SRC reads the same files.",
        "The comparison holds both models in memory, in fp32. The families that can be computed: docs/models.md.",
    ),
    examples=(
        "trident import HuggingFaceTB/SmolLM2-135M runs/smollm2",
        "trident generate checkpoint=runs/smollm2 prompt='Once upon a time'",
    ),
)
