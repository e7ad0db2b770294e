"""The rules of the house, each as a function from modules to the lines that break it."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "trainer"
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
MAX_PLAN_CONFIG_READS = 30
FRAGMENT_BEGINNINGS = frozenset(
    (
        *("As", "By", "For", "From", "In", "Of", "On", "So", "That", "Those", "To", "With", "Without"),
        *("How", "What", "When", "Where", "Whether", "Which", "Who"),
    )
)
"""First words of a text without a main clause, such as "Of the file, in bytes." or "What a run reads."."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Import:
    """One imported name."""

    target: str
    """Dotted module; for `from a import b` also `a.b`, where there is such a module."""
    line: int
    at_start: bool
    """Whether it runs when the module is imported."""


@dataclass
class Module:
    """One source file."""

    name: str
    source: str
    is_package: bool = False
    tree: ast.Module = field(init=False)

    def __post_init__(self) -> None:
        self.tree = ast.parse(self.source)

    @property
    def room(self) -> str:
        """First part below the package: a folder or a top-level file; empty for the package itself."""
        return ".".join(self.name.split(".")[1:2])


def read_modules(root: Path = ROOT) -> list[Module]:
    found = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        found.append(Module(".".join(parts[:-1] if is_package else parts), path.read_text(), is_package))
    return found


def imports(module: Module, names: Collection[str] = ()) -> list[Import]:
    """Return what a module imports. `names`: all modules, to tell `from package import module` from an attribute."""
    found: list[Import] = []
    for node, at_start in _walk(module.tree, at_start=True):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno, at_start) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.append(Import(whole if whole in names else base, node.lineno, at_start))
    return found


def _walk(node: ast.AST, at_start: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        is_typing = isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        starts = at_start and not is_typing and not isinstance(child, Function | ast.Lambda)
        yield child, starts
        yield from _walk(child, starts)


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    parts = module.name.split(".")
    here = parts[: len(parts) - node.level + (1 if module.is_package else 0)]
    return ".".join([*here, *([node.module] if node.module else [])])


def layering(modules: Sequence[Module], order: Sequence[str], apart: Mapping[str, Collection[str]]) -> list[str]:
    """A room imports only from rooms below it, and not from those that `apart` keeps it from.

    `order` names the rooms from the ground up: a room is below those that come after it.
    """
    names = {module.name for module in modules}
    problems = [
        f"{module.name}: '{module.room}' has no place in the order of rooms"
        for module in modules
        if module.room and module.room not in order
    ]
    for module in modules:
        if module.room not in order:
            continue
        for found in imports(module, names):
            if not found.target.startswith(f"{PACKAGE}."):
                continue
            room = found.target.split(".")[1]
            # Attributes of the package itself, such as its version.
            if room == module.room or f"{PACKAGE}.{room}" not in names:
                continue
            if room not in order or order.index(room) > order.index(module.room):
                problems.append(
                    f"{module.name}:{found.line}: {module.room} must not import from {room}, which is above"
                )
            elif room in apart.get(module.room, ()):
                problems.append(f"{module.name}:{found.line}: {module.room} must know nothing of {room}")
    return problems


def _graph(modules: Sequence[Module]) -> dict[str, set[str]]:
    names = {module.name for module in modules}
    return {
        module.name: {found.target for found in imports(module, names) if found.at_start and found.target in names}
        for module in modules
    }


def cycles(modules: Sequence[Module]) -> list[str]:
    """No module imports itself through others while it is imported."""
    graph = _graph(modules)
    problems = []
    for start in sorted(graph):
        path = _path(graph, start, start)
        # Told once, by its first member.
        if path and start == min(path):
            problems.append(" -> ".join(path))
    return problems


def _path(graph: Mapping[str, set[str]], start: str, goal: str) -> list[str]:
    """Return the shortest way from start to goal, with at least one step, or nothing."""
    ways = [[start]]
    seen: set[str] = set()
    for way in ways:
        for following in sorted(graph.get(way[-1], ())):
            if following == goal:
                return [*way, following]
            if following not in seen:
                seen.add(following)
                ways.append([*way, following])
    return []


def outside(modules: Sequence[Module], library: str, allowed: Collection[str]) -> list[str]:
    """`library` is imported only by the rooms or modules in `allowed`, given without the package's name."""
    problems = []
    for module in modules:
        place = module.name.removeprefix(f"{PACKAGE}.")
        if module.room in allowed or place in allowed:
            continue
        problems += [
            f"{module.name}:{found.line}: {library} must not be imported here"
            for found in imports(module)
            if found.target.split(".")[0] == library
        ]
    return problems


def reached_at_start(modules: Sequence[Module], starts: Collection[str], libraries: Collection[str]) -> list[str]:
    """Importing a room or module of `starts` imports none of `libraries`, directly or through others.

    Inside `starts`, not even a function may import one.
    """
    graph = _graph(modules)
    heavy: dict[str, list[Import]] = {}
    for module in modules:
        heavy[module.name] = [found for found in imports(module) if found.target.split(".")[0] in libraries]
    problems = []
    for module in modules:
        if module.room not in starts and module.name.removeprefix(f"{PACKAGE}.") not in starts:
            continue
        problems += [f"{module.name}:{found.line}: {found.target} must not be imported" for found in heavy[module.name]]
        for other in sorted(graph):
            bad = [found for found in heavy[other] if found.at_start]
            way = _path(graph, module.name, other) if bad and other != module.name else []
            if way:
                problems.append(f"{' -> '.join(way)}:{bad[0].line}: imports {bad[0].target}")
    return problems


def named_imports(modules: Sequence[Module], room: str, forbidden: Collection[str]) -> list[str]:
    """Modules of a room import none of these names."""
    return [
        f"{module.name}:{node.lineno}: {room} must not know {alias.name}"
        for module in modules
        if module.room == room
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name in forbidden
    ]


def prints(modules: Sequence[Module], allowed: Collection[str]) -> list[str]:
    """Nothing writes to the terminal on its own."""
    problems = []
    for module in modules:
        if module.name in allowed:
            continue
        for node in ast.walk(module.tree):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Call) and called in ("print", "sys.stdout.write", "sys.stderr.write"):
                problems.append(f"{module.name}:{node.lineno}: {called}() only in {', '.join(allowed)}")
    return problems


def file_names(modules: Sequence[Module]) -> list[str]:
    """No file is a drawer for everything."""
    drawers = ("utils", "util", "misc", "helpers")
    return [f"{module.name}: no {module.name.split('.')[-1]}.py" for module in modules if _last(module) in drawers]


def _last(module: Module) -> str:
    return module.name.split(".")[-1]


def lengths(modules: Sequence[Module]) -> list[str]:
    """Files and functions can be read at once."""
    problems = []
    for module in modules:
        lines = len(module.source.splitlines())
        if lines > MAX_FILE_LINES:
            problems.append(f"{module.name}: {lines} lines, at most {MAX_FILE_LINES}")
        for node in ast.walk(module.tree):
            if isinstance(node, Function):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    problems.append(
                        f"{module.name}:{node.lineno}: {node.name} has {lines}, at most {MAX_FUNCTION_LINES}"
                    )
    return problems


def docstrings(modules: Sequence[Module]) -> list[str]:
    """Every module and everything public in it says what it does."""
    problems = []
    for module in modules:
        if not ast.get_docstring(module.tree):
            problems.append(f"{module.name}: no docstring")
        for node in _public(module.tree):
            if not ast.get_docstring(node):
                problems.append(f"{module.name}:{node.lineno}: {node.name} has no docstring")
    return problems


def fragments(modules: Sequence[Module]) -> list[str]:
    """Every text that documents a module, class, function, field or constant begins with its subject or its verb."""
    problems = []
    for module in modules:
        for line, text in _documentation(module.tree):
            word = re.match(r"\w*", text.strip())
            if word and word[0] in FRAGMENT_BEGINNINGS:
                problems.append(f"{module.name}:{line}: '{word[0]} ...' is a fragment; write a sentence")
    return problems


def _documentation(tree: ast.Module) -> list[tuple[int, str]]:
    """Return line and text of the strings that stand as statements of their own, in the order of the source."""
    statements = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    return sorted(
        (value.lineno, value.value)
        for value in statements
        if isinstance(value, ast.Constant) and isinstance(value.value, str)
    )


def _public(tree: ast.Module | ast.ClassDef) -> Iterator[Function | ast.ClassDef]:
    for node in tree.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        decorators = {ast.unparse(item).split(".")[-1] for item in node.decorator_list}
        if not decorators & {"overload", "setter", "override"}:
            yield node
        if isinstance(node, ast.ClassDef):
            yield from _public(node)


def parameters(modules: Iterable[Module]) -> list[str]:
    """Return functions that take more than `MAX_PARAMETERS`; neither `self` nor autograd's `ctx` counts."""
    found = []
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, Function):
                given = node.args
                named = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                count = len(named) - (named[:1] in (["self"], ["cls"], ["ctx"]))
                if count > MAX_PARAMETERS:
                    found.append(f"{module.name}:{node.lineno}: {node.name} takes {count}, at most {MAX_PARAMETERS}")
    return found


def plan_config_reads(modules: Iterable[Module]) -> list[str]:
    """Return where the config of the whole is taken out of a plan, below or above the room that makes plans."""
    found = []
    for module in modules:
        if module.name.startswith(f"{PACKAGE}.config"):
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and node.attr == "config":
                owner = node.value
                name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                if name.endswith("plan"):
                    found.append(f"{module.name}:{node.lineno}")
    return found
