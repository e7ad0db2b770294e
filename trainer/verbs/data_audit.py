"""`trident data audit`: proof of what each step of a run saw."""

from __future__ import annotations

from trainer.errors import ConfigError
from trainer.verbs.declare import Option, Positional, Takes, Verb
from trainer.verbs.parse import Words


def run(words: Words) -> int:
    """Audit a run, or two, and return 1 if something differs."""
    if not 1 <= len(words.rest) <= 2:
        raise ConfigError(
            "usage must be `trident data audit RUN [OTHER] [--step N] [--json] [--picture FILE]`, but is "
            f"`{' '.join(['data audit', *words.rest])}`"
        )
    from trainer.auditing.audit import Asked, audit_verb

    step = words.value("--step")
    # Python reads no number of thousands of digits.
    if step is not None and not (step.isdecimal() and len(step) <= 18):
        raise ConfigError(f"--step must be a whole number of at most 18 digits, but is {step[:40]!r}")
    other = words.rest[1] if len(words.rest) > 1 else None
    number = None if step is None else int(step)
    return audit_verb(Asked(words.rest[0], other, number, words.has("--json"), words.value("--picture")))


VERB = Verb(
    name="data audit",
    summary="prove which samples each step of a run saw",
    run=run,
    positionals=(
        Positional("RUN", "the folder of a run", Takes.run),
        Positional("OTHER", "the folder of another run, to find the first step at which they differ", Takes.run),
    ),
    options=(
        Option(
            "--step",
            "show the documents that a step saw, and prove no later one",
            takes=Takes.number,
            metavar="N",
        ),
        Option("--json", "print one JSON object with everything"),
        Option(
            "--picture",
            "draw the place in the data at each step, and what is proven, into a file, .svg or .png",
            takes=Takes.file,
            metavar="FILE",
        ),
    ),
    text=(
        "Computes the rolling hash of all tokens once more, from the config and the cached data, and compares it with "
        "the hashes in the run's checkpoints, rows and summary. Nothing is written, and the run may be going on.",
        "The exit code is 1 if a hash differs or, with OTHER, the samples of a step; 2 if the data are not there.",
    ),
    examples=(
        "trident data audit runs/mine",
        "trident data audit runs/mine runs/other",
        "trident data audit runs/mine --step 300",
    ),
)
