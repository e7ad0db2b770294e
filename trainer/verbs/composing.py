"""Options of every verb that composes a config: they say where its files are."""

from __future__ import annotations

from trainer.config.arguments import SETTLED
from trainer.verbs.declare import Option, Takes

COMPOSING = (
    Option(
        "--config-dir",
        "look for config files here first (then in TRIDENT_CONFIG_DIR, in ./conf, and in what ships); see "
        "`trident train --info searchpath`",
        aliases=("-cd",),
        takes=Takes.folder,
        repeats=True,
        is_for_config=True,
    ),
    Option(
        "--config-path", "as --config-dir", ("-cp",), Takes.folder, repeats=True, is_for_config=True, is_hidden=True
    ),
    Option(
        SETTLED,
        "take this file as the config, whole and as it is",
        takes=Takes.file,
        is_for_config=True,
        is_hidden=True,
    ),
    Option(
        "--config-name",
        "take another primary config than train.yaml, from one of these folders",
        aliases=("-cn",),
        takes=Takes.text,
        metavar="NAME",
        is_for_config=True,
    ),
)
