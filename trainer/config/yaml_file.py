"""A strict reader of YAML files, which tells every problem with its line. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.config.searched import shown
from trainer.errors import ConfigError

_PACKAGE = re.compile(r"\s*#\s*@package\s+(.*?)\s*")


@dataclass(frozen=True)
class YamlFile:
    """The content of a YAML file."""

    path: Path
    text: str
    tree: dict[str, Any]
    node: yaml.MappingNode | None
    """The content as nodes, which know their lines; None if the file is empty."""
    package: str | None
    """Package that the header `# @package NAME` names."""

    @property
    def name(self) -> str:
        """Path of the file as a person would write it."""
        return shown(self.path)

    def at(self, node: yaml.Node) -> str:
        """Return `file:line` of a node."""
        return f"{self.name}:{node.start_mark.line + 1}"


def read_yaml(path: Path) -> YamlFile:
    """Return the content of a YAML file.

    Raises:
        ConfigError: it cannot be read, is no UTF-8, no YAML, has a key twice, or is no mapping; with the line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{shown(path)} must be a file that can be read, but: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{shown(path)}:{line} must be UTF-8, but holds the byte 0x{error.object[error.start]:02x}; "
                          f"convert it, for example with iconv -f latin1 -t utf-8") from error  # fmt: skip
    try:
        node, tree = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{shown(path)}{said(error)}") from None
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{shown(path)} must be YAML that can be read, but: {one_line(error)}") from None
    if node is not None and not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{shown(path)}:{node.start_mark.line + 1} must hold `key: value`, but holds {_kind(node)}")
    file = YamlFile(path, text, tree or {}, node, _package(path, text))
    for problem in _keys_that_are_no_text(file, node, set()):
        raise ConfigError(problem)
    return file


def parse_yaml(text: str) -> tuple[yaml.Node | None, Any]:
    """Return the first node of a YAML text and its plain values, read as OmegaConf reads them.

    Raises:
        yaml.YAMLError: it is no YAML, or has a key twice.
    """
    from omegaconf._utils import get_yaml_loader

    loader = get_yaml_loader()(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
        return node, None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def said(error: yaml.YAMLError) -> str:
    """Return `:line must be YAML, but ...`, without the excerpt that YAML's own messages hold."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f":{mark.line + 1}" if mark is not None else ""
    what = str(getattr(error, "problem", None) or one_line(error))
    if "\\t" in what:
        return f"{where} must be YAML, but a tab stands where only spaces can; indent with spaces"
    if what.startswith("found duplicate key"):
        return f"{where} must have every key once, but has '{what.removeprefix('found duplicate key ')}' again"
    if what == "mapping values are not allowed here":
        what = "a ':' stands where no key can be (is the indentation right, and is a text with ': ' in quotes?)"
    if what == "but found another document":
        what = "there is a second document after '---'"
    context = getattr(error, "context", None) or ""
    context = f" {context}" if context.startswith("while parsing") else ""
    return f"{where} must be YAML, but{context} {what}".replace("but but", "but")


def one_line(error: BaseException) -> str:
    """Return an error's text as one line without the lines that OmegaConf appends, or its type if it has no text."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type="))]
    return " ".join(" ".join(kept).split()) or type(error).__name__


def _kind(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else "one value"


def _package(path: Path, text: str) -> str | None:
    """Return the package that a file's header names."""
    for number, line in enumerate(text.splitlines(), 1):
        match = _PACKAGE.fullmatch(line)
        if match is not None:
            if not re.fullmatch(r"[\w.]+", match[1]):
                raise ConfigError(f"{shown(path)}:{number} must be '# @package NAME', but is '{line.strip()}'")
            return match[1]
        if line.strip() and not line.lstrip().startswith("#"):
            break
    return None


def _keys_that_are_no_text(file: YamlFile, node: yaml.Node | None, seen: set[int]) -> Iterator[str]:
    if node is None or id(node) in seen:
        return
    # An anchor may contain itself.
    seen.add(id(node))
    children = []
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                yield f"{file.at(key)} must have a name for a key, but has '{getattr(key, 'value', '')}'"
            children.append(value)
    elif isinstance(node, yaml.SequenceNode):
        children = list(node.value)
    for child in children:
        yield from _keys_that_are_no_text(file, child, seen)
