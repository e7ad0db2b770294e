"""Values of a shell script that is read and never run: texts in which unknown parts are marked."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from trainer.migration.foreign import Unresolved

_BEGIN, _END = "\ue000", "\ue001"
"""Private characters around the number of an unknown part; a script's own are replaced when it is read."""
_MARK = re.compile(f"{_BEGIN}(\\d+){_END}")
_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda left, right: int(left / right) if abs(left) < 2**53 > abs(right) else left // right,
    ast.Mod: lambda left, right: left - right * int(left / right),
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
}
_COMPARED: dict[type[ast.cmpop], Callable[[int, int], bool]] = {
    ast.Lt: operator.lt,
    ast.Gt: operator.gt,
    ast.LtE: operator.le,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_LARGEST = 2**63
Value = str | list[str]
"""Value of a variable: a text, or the items of an array."""


@dataclass
class Marks:
    """The unknown parts of a script, by number."""

    parts: list[Unresolved] = field(default_factory=list)

    def mark(self, text: str, variable: str = "") -> str:
        """Return a text that stands for an unknown part."""
        self.parts.append(Unresolved(" ".join(text.split()), variable))
        return f"{_BEGIN}{len(self.parts) - 1}{_END}"

    def value(self, text: str) -> str | Unresolved:
        """Return a text, or what is not known if a part of it is not."""
        found = _MARK.findall(text)
        if not found:
            return text
        whole = _MARK.sub(lambda match: self.parts[int(match[1])].text, text)
        variables = {self.parts[int(number)].variable for number in found}
        is_one = len(variables) == 1 and _MARK.fullmatch(text) is not None
        return Unresolved(whole, variables.pop() if is_one else "")


def is_known(text: str) -> bool:
    """Return whether a text has no unknown part."""
    return _BEGIN not in text


def without_marks(script: str) -> str:
    """Return a script without the characters that marks are made of."""
    return script.replace(_BEGIN, "\ufffd").replace(_END, "\ufffd")


def arithmetic(text: str) -> int | None:
    """Return the value of a shell's arithmetic whose variables are replaced already; None if it cannot be computed."""
    plain = text.replace("&&", " and ").replace("||", " or ")
    try:
        value = _computed(ast.parse(plain.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError, MemoryError):
        return None
    return value if abs(value) < _LARGEST else None


def _computed(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return int(node.value)
    if isinstance(node, ast.BinOp):
        left, right = _computed(node.left), _computed(node.right)
        if isinstance(node.op, ast.Pow) and 0 <= right <= 63:
            return int(left**right) if abs(left) <= 2**16 else 1 // 0
        if isinstance(node.op, (ast.LShift, ast.RShift)) and not 0 <= right < 64:
            raise ValueError("not computed")
        if type(node.op) in _BINARY and max(abs(left), abs(right)) < _LARGEST:
            return _BINARY[type(node.op)](left, right)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd, ast.Not)):
        value = _computed(node.operand)
        return -value if isinstance(node.op, ast.USub) else value if isinstance(node.op, ast.UAdd) else int(not value)
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARED:
        return int(_COMPARED[type(node.ops[0])](_computed(node.left), _computed(node.comparators[0])))
    if isinstance(node, ast.BoolOp):
        values = [bool(_computed(value)) for value in node.values]
        return int(all(values) if isinstance(node.op, ast.And) else any(values))
    raise ValueError("not computed")


def compared(left: str, word: str, right: str) -> bool | None:
    """Return what a test such as `left -gt right` says; None if that is not known."""
    if word in ("=", "==", "!="):
        return (left == right) is (word != "!=")
    numbers = arithmetic(left or "0"), arithmetic(right or "0")
    if None in numbers:
        return None
    words = {"-eq": "==", "-ne": "!=", "-gt": ">", "-ge": ">=", "-lt": "<", "-le": "<="}
    found = arithmetic(f"({numbers[0]}) {words.get(word, word)} ({numbers[1]})")
    return None if found is None else bool(found)
