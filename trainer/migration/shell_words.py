"""The words of a shell: what one becomes, with the values that variables have where it stands."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tree_sitter import Node

from trainer.migration.shell_values import Marks, Value, arithmetic, is_known

_VARIABLE = re.compile(r"\$?\{?([A-Za-z_]\w*)\}?")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPE_IN_QUOTES = re.compile(r'\\([$`"\\\n])')
_EXPANDED = ("simple_expansion", "expansion", "command_substitution", "arithmetic_expansion")


@dataclass
class ShellWords:
    """A part of a script, and the variables at the place that was reached."""

    source: bytes
    marks: Marks
    variables: dict[str, Value]

    def raw(self, node: Node) -> str:
        """Return a node as the script has it."""
        return self.source[node.start_byte : node.end_byte].decode(errors="replace")

    def words(self, node: Node) -> list[str]:
        """Return the words that a word becomes."""
        kind = node.type
        if kind in ("comment", "file_redirect", "herestring_redirect"):
            return []
        if kind == "command_name":
            return [word for child in node.named_children for word in self.words(child)]
        array = self.array_of(node.named_children[0] if kind == "string" and node.named_child_count == 1 else node)
        if array is not None:
            return array if kind == "string" else [word for item in array for word in item.split()]
        text = self.joined(node)
        if kind in _EXPANDED or (kind == "concatenation" and any(c.type in _EXPANDED for c in node.named_children)):
            return text.split()
        return [text]

    def array_of(self, node: Node) -> list[str] | None:
        """Return the items of an array if a node stands for all of them."""
        part = next((child for child in node.named_children if child.type == "subscript"), None)
        if node.type != "expansion" or part is None or not re.search(r"\[[@*]\]\}$", self.raw(node).strip()):
            return None
        value = self.variables.get(self.raw(part.named_children[0]))
        return value if isinstance(value, list) else None

    def joined(self, node: Node) -> str:
        """Return what one word is, quotes and escapes resolved."""
        kind = node.type
        raw = self.raw(node)
        if kind == "raw_string":
            return raw.strip()[1:-1]
        if kind == "ansi_c_string":
            return raw.strip()[2:-1].replace("\\n", "\n").replace("\\t", "\t").replace("\\'", "'")
        if kind == "string":
            return self.within(node, [child for child in node.named_children if child.type in _EXPANDED], quoted=True)
        if kind == "concatenation":
            return "".join(map(self.joined, node.named_children))
        if kind in _EXPANDED:
            return self.expanded(node)
        if kind == "command_name":
            return "".join(map(self.joined, node.named_children))
        return _ESCAPE.sub(lambda match: "" if match[1] == "\n" else match[1], raw)

    def within(self, node: Node, expanded: list[Node], quoted: bool = False) -> str:
        """Return a quoted text, or a here-document, with its expansions."""
        parts, at = [], node.start_byte
        end = node.end_byte
        if quoted:
            at, end = self.source.index(b'"', at) + 1, end - 1
        for child in expanded:
            if child.type not in _EXPANDED:
                continue
            raw = self.raw(child)
            # The grammar counts the space before an expansion to it.
            lead = len(raw) - len(raw.lstrip(" \t\n\\"))
            parts += [self.plain(self.source[at : child.start_byte].decode(errors="replace") + raw[:lead])]
            parts += [self.expanded(child)]
            at = child.end_byte
        return "".join([*parts, self.plain(self.source[at:end].decode(errors="replace"))])

    def plain(self, text: str) -> str:
        """Return a part of a quoted text with its escapes resolved."""
        return _ESCAPE_IN_QUOTES.sub(lambda match: "" if match[1] == "\n" else match[1], text)

    def expanded(self, node: Node) -> str:
        """Return what an expansion stands for, or a mark."""
        raw = self.raw(node).strip().lstrip("\\").strip()
        if node.type == "arithmetic_expansion":
            value = self.computed(node)
            return str(value) if value is not None else self.marks.mark(raw)
        if node.type == "command_substitution":
            inner = raw.strip("`").removeprefix("$(").removesuffix(")").split()
            if inner == ["pwd"]:
                return "."
            return self.marks.mark(raw)
        match = re.fullmatch(r"\$\{?([A-Za-z_]\w*)(?:\[[@*0]\])?(?:(:?[-=+?])(.*))?\}?", raw, re.DOTALL)
        if match is None:
            return self.marks.mark(raw)
        return self.variable(node, match[1], match[2] or "", raw)

    def variable(self, node: Node, name: str, sign: str, raw: str) -> str:
        """Return the value of a variable, with what stands behind its name, as in `${NAME:-default}`."""
        value = self.variables.get(name)
        text = None if value is None else value if isinstance(value, str) else " ".join(value)
        is_there = bool(text) if sign.startswith(":") else text is not None
        if sign.endswith(("-", "=", "+")):
            others = node.named_children[1:]
            other = "".join(map(self.joined, others))
            if sign.endswith("+"):
                return other if is_there else ""
            if not is_there:
                if sign.endswith("="):
                    self.variables[name] = other
                return other
        return self.marks.mark(raw, name) if text is None else text

    def computed(self, node: Node) -> int | None:
        """Return the value of an arithmetic expression; None if it is not known."""
        raw = self.raw(node).strip()
        inner = raw.removeprefix("$((").removesuffix("))") if raw.startswith("$((") else raw
        unknown = False

        def value(match: re.Match[str]) -> str:
            nonlocal unknown
            held = self.variables.get(match[1])
            # An unset name is 0 for a shell; here somebody else may set it.
            if not isinstance(held, str) or not is_known(held):
                unknown = True
                return "0"
            return f"({held or 0})"

        text = _VARIABLE.sub(value, inner)
        return None if unknown else arithmetic(text)
