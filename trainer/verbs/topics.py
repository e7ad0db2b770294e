"""`--help KEY`, `--help GROUP` and `--help GROUP=FILE`: one part of the config explained. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.config.compose import compose, options
from trainer.config.key_text import default_of, group_of, keys_of, meaning_of, rules_of, told_in_schema, type_of
from trainer.config.keys import GROUPS, KEYS, OWNERS, flatten, joined, unknown_key
from trainer.config.layout_words import GRAMMAR, LAYOUT, described, spelled_layout
from trainer.config.other_names import meanings_elsewhere
from trainer.config.places import BY_CONTENT
from trainer.config.searched import find, places, shown
from trainer.config.words import CONFIG, EXPERIMENT
from trainer.errors import ConfigError
from trainer.run_folder import may_change
from trainer.verbs.usage import paragraphs, rows, width


def topic(word: str) -> str:
    """Return the explanation of a key, a group, or a file of a group.

    Raises:
        ConfigError: there is none of that name; the error says what may have been meant.
    """
    name, _, value = word.lstrip("-").partition("=")
    if name not in KEYS and name.replace("-", "_") in KEYS:
        name = name.replace("-", "_")
    if name in KEYS:
        return _key(name)
    if name in GROUPS or name == EXPERIMENT:
        return _file(name, value) if value else _group(name)
    if name in OWNERS:
        return _part(name)
    if name == CONFIG:
        return (
            "config=FILE\n\nStarts from a file that holds a whole config, such as runs/old/config.yaml (or from that "
            "run's folder): its keys instead of the files\nthat the groups' defaults pick. Groups, recipes and keys on "
            "the command line win over it."
        )
    raise ConfigError(unknown_key(name, [*GROUPS, EXPERIMENT]), hints=["see `trident train --help` for all groups"])


def _key(key: str) -> str:
    wide, told = width(), told_in_schema()
    facts = [
        ("type", type_of(key).replace("`", "")),
        ("default", default_of(key, flatten(compose([])))),
        ("may change", _when(key)),
    ]
    others = [name for name, meant in meanings_elsewhere().items() if meant.keys == (key,) and not meant.note]
    facts += [("elsewhere", joined(others, "and"))] if others else []
    lines = [key, "", *paragraphs([meaning_of(key, told)], wide), *rows(facts, wide), ""]
    rules = [("-", rule) for rule in rules_of(key)]
    lines += ["rules", *rows(rules, wide), ""] if rules else []
    neighbours = [other for other in keys_of(group_of(key)) if other != key]
    lines += [f"beside it in {group_of(key)}" if group_of(key) else "beside it", *_named(neighbours, wide)]
    return "\n".join(lines)


def _when(key: str) -> str:
    if key in BY_CONTENT:
        return "in the place only: the same run goes on if its tokens lie elsewhere; the tokens are compared"
    if may_change(key):
        return "at any time: the same run goes on with another value"
    return "not in a run that has begun: another value is another run, in a run_dir of its own"


def _named(keys: Sequence[str], wide: int) -> list[str]:
    return [f"  {line}" for line in paragraphs([", ".join(keys)], wide - 2) if line]


def _group(group: str) -> str:
    wide, told = width(), told_in_schema()
    what = "Recipes: files that pick files of other groups and set keys." if group == EXPERIMENT else ""
    lines = [group, "", *paragraphs([what or told[GROUPS[group].__name__]], wide)]
    found = places()
    files = []
    for name in options(found)[group]:
        hit = find(found, f"{group}/{name}")
        if hit is not None:
            files.append((f"{group}={name}", _first_comment(hit[0].read_text(encoding="utf-8", errors="replace"))))
    lines += _spellings(wide) if group == LAYOUT else []
    lines += ["files", *rows(files, wide)] if files else []
    keys = [(key, meaning_of(key, told)) for key in (keys_of(group) if group in GROUPS else [])]
    lines += ["", "keys", *rows(keys, wide)] if keys else []
    return "\n".join(lines)


def _part(name: str) -> str:
    """Return what there is below a key that has keys of its own."""
    told = told_in_schema()
    keys = [(key, meaning_of(key, told)) for key in KEYS if key.startswith(f"{name}.")]
    return "\n".join([name, "", *paragraphs([told[OWNERS[name].__name__]], width()), "keys", *rows(keys, width())])


def _spellings(wide: int) -> list[str]:
    """Return the lines that say how a layout is written."""
    told = paragraphs(["layout=PARTS, such as layout=tp4_pp2_dp8_sp: each part at most once, in any order."], wide)
    return [*told, "parts", *rows(GRAMMAR, wide), ""]


def _file(group: str, name: str) -> str:
    found = places()
    hit = find(found, f"{group}/{name}")
    if hit is None and group == LAYOUT and spelled_layout(name) is not None:
        return "\n".join([f"{group}={name}", "", *rows(described(name), width())])
    if hit is None:
        compose([f"{group}={name}"])
        raise ConfigError(f"{group}={name} is no file of this group")
    text = hit[0].read_text(encoding="utf-8", errors="replace")
    return f"{group}={name} is {shown(hit[0])}\n\n{text.rstrip()}"


def _first_comment(text: str) -> str:
    """Return the sentence at the top of a file."""
    comments = (line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    return next((line for line in comments if line and not line.startswith("@")), "")
