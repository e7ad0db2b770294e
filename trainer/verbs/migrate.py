"""`trident migrate`: another trainer's config as an experiment."""

from __future__ import annotations

from pathlib import Path

from trainer.verbs.declare import Option, Positional, Takes, Verb
from trainer.verbs.parse import Words


def run(words: Words) -> int:
    """Write the experiment, and say what of the files is in it."""
    from trainer.migration.foreign import Trainer
    from trainer.migration.migrating import Asked, migrate_verb

    settings = [word for word in words.rest if _is_setting(word)]
    trainer = words.value("--from")
    return migrate_verb(
        Asked(
            files=[word for word in words.rest if word not in settings],
            settings=settings,
            output=words.value("--output"),
            trainer=None if trainer is None else Trainer(trainer),
            overwrites=words.has("--force"),
        )
    )


def _is_setting(word: str) -> bool:
    """Return whether a word sets a key; a file whose name has an equals sign is one nevertheless."""
    return "=" in word and not Path(word).exists()


VERB = Verb(
    name="migrate",
    summary="write another trainer's config as an experiment",
    run=run,
    positionals=(
        Positional(
            "FILE...",
            "a gpt-neox YAML, or several that belong together; a script or the arguments of Megatron-LM or "
            "Megatron-DeepSpeed; a nanotron YAML; a DeepSpeed JSON; - for the standard input",
            Takes.file,
        ),
    ),
    options=(
        Option(
            "--output",
            "the experiment to write; without it conf/experiment/NAME.yaml, after the first FILE",
            aliases=("-o",),
            takes=Takes.file,
            metavar="FILE",
        ),
        Option(
            "--from",
            "the trainer that the files are of; without it that is seen from what they hold",
            takes=Takes.choice,
            choices=("gpt-neox", "megatron", "nanotron", "deepspeed"),
        ),
        Option("--force", "replace the experiment if it is there"),
    ),
    takes_settings=True,
    text=(
        "Says what of the files is a key here, what differs, what has no key and why, and compares the number of "
        "parameters and of tokens in a step with those of the files. Nothing of a script is run: variables that it "
        "does not set are those of the environment.",
        "Keys that follow win over the files, and answer what they do not say, such as the number of replicas. The "
        "experiment is written only if it can run. docs/migration.md has the details.",
    ),
    examples=(
        "trident migrate 20B.yml layout.data_parallel_size=12",
        "DATA_PATH=/data/pile_text_document trident migrate train_gpt3_175b_distributed.sh",
    ),
)
