"""`trident parity`: proof that a config trains the same model in its layout as in one plain process."""

from __future__ import annotations

from pathlib import Path

from trainer.errors import ConfigError, DataError
from trainer.verbs.composing import COMPOSING
from trainer.verbs.declare import Option, Takes, Verb
from trainer.verbs.parse import Words

MOST_STEPS = 20


def run(words: Words) -> int:
    """Prove the config; return 0 if all trials agree with the oracle, otherwise 1."""
    import os

    from trainer.config.compose import composition
    from trainer.dry_run import vocabulary
    from trainer.hardware import look_here
    from trainer.proving.parity import Asked, prove
    from trainer.settling import settled

    steps = _steps(words.value("--steps"))
    config, _ = settled(composition(words.rest), None, None, look_here(os.environ))
    named = words.value("--layouts")
    layouts = () if named is None else tuple(name.strip() for name in named.split(","))
    out = Path(words.value("--out") or "parity.json").expanduser()
    if out.is_dir():
        raise ConfigError(f"--out must name a file, but {out} is a folder")
    try:
        vocab_size = vocabulary(config)
    except DataError:
        # Neither the data nor the tokenizer is needed.
        vocab_size = None
    return prove(config, vocab_size, Asked(steps, layouts, out, words.has("--json")))


def _steps(text: str | None) -> int:
    if text is None:
        return 3
    if not text.isdecimal() or not 1 <= int(text) <= MOST_STEPS:
        raise ConfigError(f"--steps must be a number from 1 to {MOST_STEPS}, but is {text!r}")
    return int(text)


VERB = Verb(
    name="parity",
    summary="prove that a config trains the same model in every layout",
    run=run,
    options=(
        Option("--steps", "steps that each trial trains (3)", takes=Takes.number, metavar="K"),
        Option(
            "--layouts",
            "try these layouts, as tp2_pp2,dp4, instead of the config's own and its neighbours",
            takes=Takes.text,
            metavar="LAYOUTS",
        ),
        Option("--out", "file of the certificate (parity.json)", takes=Takes.file, metavar="FILE"),
        Option("--json", "print the certificate instead of a table"),
        *COMPOSING,
    ),
    takes_settings=True,
    text=(
        "Takes the groups and keys of `trident train`. The model is scaled down with its structure kept, and trained "
        "for some steps in the config's layout and its neighbours, in processes of this machine's CPU, and by an "
        "oracle: one plain process, written from the papers. Losses, gradient norms, each tensor's gradient and "
        "change are compared. Where they differ, the tensor and the axis at fault are named, and the exit code is 1.",
    ),
    examples=(
        "trident parity experiment=llama3_8b_64gpu",
        "trident parity model=gemma3_1b layout=tp2_pp2 --layouts tp2_pp2,pp4,dp2",
    ),
)
