"""Checks of a config file before Hydra sees it: its keys, values and defaults list, each with file and line.

Hydra finds most of this too, but only one at a time, without a line, in a page of text. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from trainer.config.choices import meant_choice
from trainer.config.keys import GROUPS, KEYS, OWNERS, coerce, did_you_mean, unknown_key
from trainer.config.searched import ALL_GROUPS, PRIMARY, SCHEMA_NAME, Place, exists, find, options
from trainer.config.words import EXPERIMENT
from trainer.config.yaml_file import YamlFile
from trainer.errors import ConfigError

MISSING = "???"
"""Hydra's mark for a value that must be given elsewhere."""
_WORDS = re.compile(r"((?:(?:optional|override)\s+)*)(\S+)")


def check_file(file: YamlFile, path: str, found: Sequence[Place]) -> None:
    """Check the file that a config path such as `experiment/mine` or `train` stands for.

    Raises:
        ConfigError: every key that does not exist, every value of a wrong type, every file that it picks and that is
            not there.
    """
    group = path.partition("/")[0] if "/" in path else ""
    problems = []
    if file.node is not None:
        body = _without(file.node, "defaults", "hydra")
        problems += list(_values(file, body, package(file, group)))
        for key, value in file.node.value:
            if key.value == "hydra" and not (path != SCHEMA_NAME and not group and _is_searchpath(value)):
                problems.append(f"{file.at(key)}: 'hydra' has no effect here: Trident uses Hydra only to compose")
            if key.value == "defaults":
                problems += list(_defaults(file, value, path, found))
    if problems:
        raise ConfigError(problems)


def package(file: YamlFile, group: str) -> str:
    """Return the prefix of a file's keys: the name of its group, or nothing. A recipe sets keys of all groups."""
    named = file.package
    if named is None or named == "_group_":
        return "" if group == EXPERIMENT else group.replace("/", ".")
    return named.removeprefix("_global_").lstrip(".")


def cycle(file_path: str, found: Sequence[Place]) -> list[str]:
    """Return the files that include each other in a circle, beginning with a config path, or nothing."""
    from trainer.config.yaml_file import read_yaml

    def walk(path: str, above: tuple[str, ...]) -> list[str]:
        if path in above:
            return [*above[above.index(path) :], path]
        hit = find(found, path)
        if hit is None:
            return []
        for _, key, value in _entries(read_yaml(hit[0])):
            for name in value:
                circle = walk(_absolute(key, path, name), (*above, path))
                if circle:
                    return circle
        return []

    return walk(file_path, ())


def _without(node: yaml.MappingNode, *names: str) -> yaml.MappingNode:
    kept = [(key, value) for key, value in node.value if key.value not in names]
    return yaml.MappingNode(node.tag, kept, node.start_mark, node.end_mark)


def _is_searchpath(node: yaml.Node) -> bool:
    return isinstance(node, yaml.MappingNode) and [key.value for key, _ in node.value] == ["searchpath"]


def _values(file: YamlFile, node: yaml.MappingNode, prefix: str) -> Iterator[str]:
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        name = f"{prefix}.{key.value}" if prefix else key.value
        if "." in key.value and (name in KEYS or name in OWNERS):
            outer, _, inner = key.value.rpartition(".")
            yield f"{file.at(key)}: '{key.value}' is one word here; write '{outer}:', and below it '{inner}: ...'"
        elif name in KEYS:
            try:
                _check_value(name, _plain(value))
            except ConfigError as error:
                yield f"{file.at(key)}: {error}"
        elif isinstance(value, yaml.MappingNode) and (name in GROUPS or _leads_to_keys(name)):
            yield from _values(file, value, name)
        elif name in GROUPS and _plain(value) is None:
            continue
        else:
            yield f"{file.at(key)}: {_unknown(name, prefix)}"


def _leads_to_keys(name: str) -> bool:
    return any(key.startswith(f"{name}.") for key in KEYS)


def _unknown(name: str, prefix: str) -> str:
    if prefix and name == f"{prefix}.{prefix}":
        return (
            f"there is no key '{name}': a file of this group holds the keys of {prefix} themselves; leave '{prefix}:' "
            "out, or begin the file with '# @package _global_'"
        )
    if not prefix and name == EXPERIMENT:
        return "'experiment' is no key; pick recipes in the defaults list"
    return unknown_key(name, list(ALL_GROUPS))


def _plain(node: yaml.Node) -> Any:
    from omegaconf._utils import get_yaml_loader

    return get_yaml_loader()("").construct_document(node)


def _check_value(name: str, value: object) -> None:
    texts = value if isinstance(value, list) else [value]
    if any(isinstance(text, str) and ("${" in text or text == MISSING) for text in texts):
        return
    coerce(name, KEYS[name], value)


def _entries(file: YamlFile) -> Iterator[tuple[yaml.Node, str, list[str]]]:
    """Yield place, group with its keywords, and names of each entry of a defaults list that has a known form."""
    if file.node is None:
        return
    for key, value in file.node.value:
        if key.value != "defaults" or not isinstance(value, yaml.SequenceNode):
            continue
        for entry in value.value:
            if isinstance(entry, yaml.ScalarNode) and entry.value != "_self_":
                yield entry, "", [entry.value]
            elif isinstance(entry, yaml.MappingNode) and len(entry.value) == 1:
                name, chosen = entry.value[0]
                values = chosen.value if isinstance(chosen, yaml.SequenceNode) else [chosen]
                yield entry, name.value, [one.value for one in values if one.tag.endswith(":str")]


def _absolute(key: str, path: str, name: str) -> str:
    """Return the config path that an entry of a defaults list stands for."""
    match = _WORDS.fullmatch(key)
    group = (match[2] if match else key).partition("@")[0]
    name = name.partition("@")[0]
    whole = f"{group}/{name}" if group else name
    if whole.startswith("/"):
        return whole[1:]
    return f"{path.rpartition('/')[0]}/{whole}".lstrip("/")


def _defaults(file: YamlFile, node: yaml.Node, path: str, found: Sequence[Place]) -> Iterator[str]:
    if not isinstance(node, yaml.SequenceNode):
        yield f"{file.at(node)}: defaults must be a list, such as '- override /model: gpt2_124m', but is not"
        return
    known = {id(entry) for entry, _, _ in _entries(file)}
    for entry in node.value:
        if id(entry) not in known and not (isinstance(entry, yaml.ScalarNode) and entry.value == "_self_"):
            yield f"{file.at(entry)}: an entry of defaults must be 'group: name', the name of a file, or _self_"
    for entry, key, names in _entries(file):
        problem = _wrong_group(key, path) if key else ""
        if problem:
            yield f"{file.at(entry)}: {problem}"
            continue
        for name in names:
            problem = _wrong_name(key, _absolute(key, path, name), name, found)
            if problem:
                yield f"{file.at(entry)}: {problem}"


def _wrong_group(key: str, path: str) -> str:
    match = _WORDS.fullmatch(key)
    words, group = (match[1].split(), match[2]) if match else ([], key)
    bare = group.partition("@")[0].lstrip("/")
    if bare not in ALL_GROUPS:
        below = path.rpartition("/")[0]
        if not group.startswith("/") and below and bare.partition("/")[0] not in ALL_GROUPS:
            return f"there is no group '{below}/{bare}'{did_you_mean(bare, ALL_GROUPS, '/{}')}"
        return f"there is no group '{bare}'{did_you_mean(bare, ALL_GROUPS)}"
    if "/" not in path:
        return ""
    if not group.startswith("/") or "override" not in words:
        return f"'{key}' picks a file of another group, which is written 'override /{bare}'"
    return ""


def _wrong_name(key: str, path: str, name: str, found: Sequence[Place]) -> str:
    match = _WORDS.fullmatch(key)
    if "${" in name or name == MISSING or path == SCHEMA_NAME or (match and "optional" in match[1].split()):
        return ""
    if exists(found, path):
        return ""
    group, _, _ = path.partition("/")
    if "/" not in path:
        return f"there is no config '{path}'{did_you_mean(path, [PRIMARY])}"
    if group not in ALL_GROUPS:
        return f"there is no group '{group}'{did_you_mean(group, ALL_GROUPS)}"
    name = path.partition("/")[2]
    return f"there is no {group}={name}; {meant_choice(group, name, options(found)[group])}"
