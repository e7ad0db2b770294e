"""`trident compare`: two runs beside each other."""

from __future__ import annotations

from trainer.errors import ConfigError
from trainer.verbs.declare import Option, Positional, Takes, Verb
from trainer.verbs.parse import Words


def run(words: Words) -> int:
    """Compare two runs."""
    if len(words.rest) != 2:
        raise ConfigError(
            "usage must be `trident compare A B [--tolerance X] [--json]`, but is "
            f"`trident {' '.join(['compare', *words.rest])}`"
        )
    from trainer.comparing.differing import TOLERANCE
    from trainer.comparing.two_records import compare_verb

    return compare_verb(words.rest, _tolerance(words.value("--tolerance"), TOLERANCE), words.has("--json"))


def _tolerance(text: str | None, default: float) -> float:
    if text is None:
        return default
    try:
        tolerance = float(text)
    except ValueError:
        tolerance = -1.0
    if not 0 <= tolerance < 1:
        raise ConfigError(f"--tolerance must be a number from 0 to below 1, but is {text[:40]!r}")
    return tolerance


VERB = Verb(
    name="compare",
    summary="say what differs between two runs, and where they part",
    run=run,
    positionals=(
        Positional("A", "the folder of a run", Takes.run),
        Positional("B", "the folder of another run, which is held against it", Takes.run),
    ),
    options=(
        Option(
            "--tolerance",
            "relative difference up to which results are taken for alike (default 0.01)",
            takes=Takes.number,
            metavar="X",
        ),
        Option("--json", "print one JSON object with everything"),
    ),
    text=(
        "Compares config, environment, samples (by the hashes that both wrote down), results, speed and events. Says "
        "at which step the first bit of a result differs, at which one results differ by more than the tolerance, and "
        "what differs by then. Runs may be going on, be damaged, or be of other versions. Reads no tokens and loads no "
        "torch.",
    ),
    examples=("trident compare runs/yesterday runs/today", "trident compare runs/a runs/b --tolerance 1e-5"),
)
