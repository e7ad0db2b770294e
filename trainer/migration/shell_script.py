"""Reading of a shell script without running it: its commands, with the values that its variables have there.

The grammar is tree-sitter's. What a script asks of other programs (`$(nvidia-smi ...)`), of files and of its caller
(`$1`) is not known; such values are marked, and so is what stands in a branch or a loop that depends on them.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import tree_sitter_bash
from tree_sitter import Language, Node, Parser

from trainer.migration.shell_values import Marks, arithmetic, compared, is_known, without_marks

_NAME = re.compile(r"[A-Za-z_]\w*")
_VARIABLE = re.compile(r"\$?\{?([A-Za-z_]\w*)\}?")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPE_IN_QUOTES = re.compile(r'\\([$`"\\\n])')
_EXPANDED = ("simple_expansion", "expansion", "command_substitution", "arithmetic_expansion")
_STATEMENTS = ("program", "compound_statement", "do_group", "list", "pipeline", "subshell", "else_clause")
Value = str | list[str]
_LONGEST = 1_000_000
"""A script that doubles a text in each line would fill any memory."""


@dataclass(frozen=True)
class Command:
    """One command with its arguments, as the shell would start it."""

    words: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class HereText:
    """A text that stands in the script and is written to a file."""

    target: str
    """File that it is written to; empty if it is piped."""
    text: str
    line: int


@dataclass
class Script:
    """The commands and texts of a script."""

    marks: Marks = field(default_factory=Marks)
    commands: list[Command] = field(default_factory=list)
    texts: list[HereText] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_script(text: str, name: str, environment: Mapping[str, str]) -> Script:
    """Return the commands of a script.

    Args:
        text: the script.
        name: its name, for the notes.
        environment: variables that it begins with.
    """
    script = Script()
    source = without_marks(text).replace("\r\n", "\n").encode()
    tree = Parser(Language(tree_sitter_bash.language())).parse(source)
    reader = _Reader(source, name, script, dict(environment))
    reader.statements(tree.root_node)
    return script


@dataclass
class _Reader:
    source: bytes
    name: str
    script: Script
    variables: dict[str, Value]

    def line(self, node: Node) -> int:
        return int(node.start_point[0]) + 1

    def raw(self, node: Node) -> str:
        return self.source[node.start_byte : node.end_byte].decode(errors="replace")

    def note(self, node: Node, text: str) -> None:
        self.script.notes.append(f"{self.name}:{self.line(node)}: {text}")

    # Statements.

    def statements(self, node: Node) -> None:
        for child in node.named_children:
            self.statement(child)

    def statement(self, node: Node) -> None:
        kind = node.type
        if kind in _STATEMENTS:
            self.statements(node)
        elif kind == "variable_assignment":
            self.assign(node)
        elif kind == "declaration_command":
            for child in node.named_children:
                if child.type == "variable_assignment":
                    self.assign(child)
        elif kind == "command":
            self.command(node)
        elif kind == "redirected_statement":
            self.redirected(node)
        elif kind == "if_statement":
            self.branch(node)
        elif kind == "case_statement":
            self.case(node)
        elif kind == "ERROR":
            self.note(node, f"this is no shell that can be read: {' '.join(self.raw(node).split())[:60]}")
        elif kind in ("for_statement", "c_style_for_statement", "while_statement", "function_definition"):
            self.note(node, f"{kind.replace('_', ' ')} is left out: nothing of the script is run")
            self.forget(node)

    def forget(self, node: Node) -> None:
        """Mark the variables that a part which is left out may set."""
        if node.type == "variable_assignment" and (name := node.child_by_field_name("name")) is not None:
            text = self.raw(name)
            self.variables[text] = self.script.marks.mark(f"${text}")
        for child in node.named_children:
            self.forget(child)

    def assign(self, node: Node) -> None:
        name, value = node.child_by_field_name("name"), node.child_by_field_name("value")
        if name is None:
            return
        text = self.raw(name)
        if not _NAME.fullmatch(text):
            self.note(node, f"{text} is left out: elements of arrays are not followed")
            return
        adds = any(child.type == "+=" for child in node.children)
        found: Value
        if value is None:
            found = ""
        elif value.type == "array":
            found = [word for child in value.named_children for word in self.words(child)]
        else:
            found = self.joined(value)
        before = self.variables.get(text, "")
        if adds and isinstance(found, list):
            found = [*(before if isinstance(before, list) else [before] if before else []), *found]
        elif adds and isinstance(before, str):
            found = f"{before}{found}"
        if len(found) > _LONGEST or sum(map(len, found)) > _LONGEST:
            self.note(node, f"{text} is left out: it is longer than {_LONGEST:,} characters")
            found = self.script.marks.mark(f"${text}")
        self.variables[text] = found

    def command(self, node: Node) -> None:
        parts = (child for child in node.named_children if child.type != "variable_assignment")
        words = [word for part in parts for word in self.words(part)]
        if words:
            self.script.commands.append(Command(tuple(words), self.line(node)))

    def redirected(self, node: Node) -> None:
        here = next((child for child in node.named_children if child.type == "heredoc_redirect"), None)
        if here is None:
            body = node.child_by_field_name("body")
            if body is not None:
                self.statement(body)
            return
        parts = {child.type: child for child in here.named_children}
        text, start = parts.get("heredoc_body"), parts.get("heredoc_start")
        if text is None or start is None:
            return
        is_literal = self.raw(start)[:1] in "'\"\\"
        content = self.raw(text) if is_literal else self.within(text, text.named_children)
        targets = (
            child.child_by_field_name("destination")
            for child in (*node.named_children, *here.named_children)
            if child.type == "file_redirect"
        )
        target = next((self.joined(one) for one in targets if one is not None), "")
        self.script.texts.append(HereText(target, content, self.line(node)))

    def branch(self, node: Node) -> None:
        condition = node.child_by_field_name("condition")
        holds = None if condition is None else self.holds(condition)
        if holds is None:
            self.note(node, "a branch is left out: its condition is not known without running the script")
            self.forget(node)
            return
        if holds:
            is_inside = False
            for child in node.children:
                is_inside = is_inside or child.type == "then"
                if is_inside and child.is_named and child.type not in ("elif_clause", "else_clause"):
                    self.statement(child)
            return
        for child in node.named_children:
            if child.type == "elif_clause" and self.took(child):
                return
            if child.type == "else_clause":
                self.statements(child)

    def took(self, node: Node) -> bool:
        """Read an `elif` whose condition holds, and return whether what follows it is passed over."""
        condition = next(iter(node.named_children), None)
        holds = None if condition is None else self.holds(condition)
        if holds is None:
            self.note(node, "a branch is left out: its condition is not known without running the script")
            self.forget(node)
        elif holds:
            for child in node.named_children[1:]:
                self.statement(child)
        return holds is not False

    def case(self, node: Node) -> None:
        value = node.child_by_field_name("value")
        word = "" if value is None else self.joined(value)
        for item in (child for child in node.named_children if child.type == "case_item"):
            patterns = item.children_by_field_name("value")
            if value is None or not is_known(word):
                self.note(node, "a case is left out: its word is not known without running the script")
                self.forget(node)
                return
            if any(fnmatch.fnmatchcase(word, self.joined(pattern)) for pattern in patterns):
                known = {pattern.id for pattern in patterns}
                for child in item.named_children:
                    if child.id not in known:
                        self.statement(child)
                return

    def holds(self, node: Node) -> bool | None:
        """Return what a condition says; None if that is not known."""
        kind = node.type
        inner = list(node.named_children)
        if kind in ("test_command", "parenthesized_expression", "compound_statement") and len(inner) == 1:
            if any(child.type == "((" for child in node.children):
                value = self.computed(inner[0])
                return None if value is None else bool(value)
            return self.holds(inner[0])
        if kind == "negated_command" or (kind == "unary_expression" and any(c.type == "!" for c in node.children)):
            found = self.holds(inner[-1]) if inner else None
            return None if found is None else not found
        if kind == "unary_expression":
            word, operand = self.raw(node.children[0]).strip(), self.joined(inner[-1])
            if word not in ("-z", "-n") or not is_known(operand):
                return None
            return (not operand) is (word == "-z")
        if kind == "list" and len(inner) == 2:
            return self.binary(inner[0], self.raw(node.children[1]).strip(), inner[1])
        if kind == "binary_expression":
            left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
            sign = node.child_by_field_name("operator")
            if left is None or right is None or sign is None:
                return None
            if left.type == "unary_expression" and left.children[0].type == "!":
                # The grammar binds `! 1 = 2` to its first word.
                found = self.binary(left.named_children[-1], self.raw(sign).strip(), right)
                return None if found is None else not found
            return self.binary(left, self.raw(sign).strip(), right)
        if kind == "command":
            words = {"true": True, "false": False}
            return words.get(self.joined(inner[0])) if len(inner) == 1 else None
        if kind in ("word", "string", "simple_expansion", "expansion", "number"):
            text = self.joined(node)
            return bool(text) if is_known(text) else None
        return None

    def binary(self, left: Node, sign: str, right: Node) -> bool | None:
        if sign in ("&&", "||"):
            both = self.holds(left), self.holds(right)
            decisive = sign == "||"
            return decisive if decisive in both else None if None in both else not decisive
        one, two = self.joined(left), self.joined(right)
        return compared(one, sign, two) if is_known(one + two) else None

    # Words.

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
        return _ESCAPE_IN_QUOTES.sub(lambda match: "" if match[1] == "\n" else match[1], text)

    def expanded(self, node: Node) -> str:
        raw = self.raw(node).strip().lstrip("\\").strip()
        if node.type == "arithmetic_expansion":
            value = self.computed(node)
            return str(value) if value is not None else self.script.marks.mark(raw)
        if node.type == "command_substitution":
            inner = raw.strip("`").removeprefix("$(").removesuffix(")").split()
            if inner == ["pwd"]:
                return "."
            return self.script.marks.mark(raw)
        match = re.fullmatch(r"\$\{?([A-Za-z_]\w*)(?:\[[@*0]\])?(?:(:?[-=+?])(.*))?\}?", raw, re.DOTALL)
        if match is None:
            return self.script.marks.mark(raw)
        return self.variable(node, match[1], match[2] or "", raw)

    def variable(self, node: Node, name: str, sign: str, raw: str) -> str:
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
        return self.script.marks.mark(raw, name) if text is None else text

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
