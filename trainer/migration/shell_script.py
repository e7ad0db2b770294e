"""Reading of a shell script without running it: its commands, with the values that its variables have there.

The grammar is tree-sitter's. What a script asks of other programs (`$(nvidia-smi ...)`), of files and of its caller
(`$1`) is not known; such values are marked, and so is what stands in a branch or a loop that depends on them.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import tree_sitter_bash
from tree_sitter import Language, Node, Parser

from trainer.migration.shell_values import Marks, Value, compared, is_known, without_marks
from trainer.migration.shell_words import ShellWords

_NAME = re.compile(r"[A-Za-z_]\w*")
_STATEMENTS = ("program", "compound_statement", "do_group", "list", "pipeline", "subshell", "else_clause")
_SHELLS = ("bash", "sh")
_DEEPEST = 5
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
    variables: dict[str, Value] = field(default_factory=dict)
    """Variables at its end, those of the environment among them."""


def read_script(text: str, name: str, environment: Mapping[str, str]) -> Script:
    """Return the commands of a script.

    Args:
        text: the script.
        name: its name, for the notes.
        environment: variables that it begins with.
    """
    script = Script()
    source = without_marks(text).replace("\r\n", "\n").encode()
    script.variables = dict(environment)
    _Reader(source, script.marks, script.variables, script, name).statements(_parsed(source))
    return script


def _parsed(source: bytes) -> Node:
    return Parser(Language(tree_sitter_bash.language())).parse(source).root_node


def _inner_script(words: Sequence[str]) -> str | None:
    """Return the script that a command has as a word, `bash -c SCRIPT` or `eval SCRIPT`, behind a launcher or not."""
    if words[0] == "eval":
        return " ".join(words[1:])
    for at, word in enumerate(words[:-2]):
        if word.rpartition("/")[2] in _SHELLS and re.fullmatch(r"-[a-z]*c", words[at + 1]):
            return words[at + 2]
    return None


@dataclass
class _Reader(ShellWords):
    """The statements of a script, in their order."""

    script: Script
    name: str
    depth: int = 0
    """Number of scripts around this one, as in `bash -c '...'`."""
    outer_line: int = 0
    """Line of the command that has this script as a word."""

    def line(self, node: Node) -> int:
        return self.outer_line or int(node.start_point[0]) + 1

    def note(self, node: Node, text: str) -> None:
        self.script.notes.append(f"{self.name}:{self.line(node)}: {text}")

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
        """Mark the variables that a part which is left out may set; one that it adds to keeps what it has."""
        if node.type == "variable_assignment" and (name := node.child_by_field_name("name")) is not None:
            text = self.raw(name)
            adds = any(child.type == "+=" for child in node.children)
            if not adds and not re.search(rf"\$\{{?{text}\b", self.raw(node)):
                self.variables[text] = self.marks.mark(f"${text}")
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
            found = self.marks.mark(f"${text}")
        self.variables[text] = found

    def command(self, node: Node) -> None:
        parts = (child for child in node.named_children if child.type != "variable_assignment")
        words = [word for part in parts for word in self.words(part)]
        if not words:
            return
        inner = _inner_script(words)
        if inner is None:
            self.script.commands.append(Command(tuple(words), self.line(node)))
        elif self.depth < _DEEPEST:
            # Its variables are those of here: what is not exported there is not set by scripts that work.
            where = (self.depth + 1, self.line(node))
            reader = _Reader(inner.encode(), self.marks, self.variables, self.script, self.name, *where)
            reader.statements(_parsed(reader.source))

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
