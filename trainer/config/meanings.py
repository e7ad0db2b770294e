"""Texts about keys: the string literals under the fields of a dataclass, read from its source. No torch."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable
from types import ModuleType

from trainer.config import (
    schema,
    schema_cluster,
    schema_data,
    schema_logging,
    schema_model,
    schema_optimizer,
    schema_runtime,
    schema_train,
)

SCHEMAS: tuple[ModuleType, ...] = (
    schema,
    schema_model,
    schema_data,
    schema_optimizer,
    schema_train,
    schema_runtime,
    schema_logging,
    schema_cluster,
)
"""Modules that declare the keys; those of a part of the model are in `trainer.spec`."""


def meanings(modules: Iterable[ModuleType]) -> dict[str, str]:
    """Return `Class.field` -> the string literal under the field, and `Class` -> its docstring, as single lines."""
    found: dict[str, str] = {}
    nodes = [node for module in modules for node in ast.parse(inspect.getsource(module)).body]
    for node in nodes:
        if not isinstance(node, ast.ClassDef):
            continue
        found[node.name] = " ".join((ast.get_docstring(node) or "").split())
        for field, literal in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                found[f"{node.name}.{field.target.id}"] = _text(literal)
    return found


def _text(node: ast.stmt) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""
