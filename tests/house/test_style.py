from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.house.checks import (
    MAX_FILE_LINES,
    MAX_FUNCTION_LINES,
    MAX_PARAMETERS,
    MAX_PLAN_CONFIG_READS,
    Module,
    docstrings,
    file_names,
    fragments,
    lengths,
    parameters,
    plan_config_reads,
    prints,
    read_modules,
)


@pytest.fixture(scope="module")
def modules() -> list[Module]:
    return read_modules()


def module(text: str, name: str = "trainer.loop.x") -> list[Module]:
    return [Module(name, text)]


def test_only_log_prints(modules: Sequence[Module]) -> None:
    assert prints(modules, ("trainer.log",)) == []


def test_a_print_is_found() -> None:
    text = "import sys\ndef f():\n    print('x')\nsys.stderr.write('y')\nfingerprint()\nconsole.print('z')\n"
    assert prints(module(text), ("trainer.log",)) == [
        "trainer.loop.x:4: sys.stderr.write() only in trainer.log",
        "trainer.loop.x:3: print() only in trainer.log",
    ]
    assert prints(module(text, "trainer.log"), ("trainer.log",)) == []


def test_no_file_is_a_drawer(modules: Sequence[Module]) -> None:
    assert file_names(modules) == []


def test_a_drawer_is_found() -> None:
    assert file_names(module("", "trainer.data.utils")) == ["trainer.data.utils: no utils.py"]


def test_files_and_functions_are_short(modules: Sequence[Module]) -> None:
    assert lengths(modules) == []


def test_long_ones_are_found() -> None:
    def function(lines: int) -> str:
        return "class A:\n    def f(self):\n" + "        x = 1\n" * (lines - 1)

    assert lengths(module(function(MAX_FUNCTION_LINES))) == []
    assert lengths(module(function(MAX_FUNCTION_LINES + 1))) == ["trainer.loop.x:2: f has 61, at most 60"]
    assert lengths(module("x = 1\n" * MAX_FILE_LINES)) == []
    assert lengths(module("x = 1\n" * (MAX_FILE_LINES + 1))) == ["trainer.loop.x: 401 lines, at most 400"]


def test_documentation_is_written_in_sentences(modules: Sequence[Module]) -> None:
    assert fragments(modules) == []


def test_a_fragment_is_found() -> None:
    text = '''"""What a run reads."""

LIMIT = 3
"""Of lines in a file."""

class A:
    """Where it is."""

    size: int
    """
    In bytes.
    """
    path: str
    """Path of the file, whose size is in bytes."""

    def whole(self):
        """Whether it is."""
        text = "Of no concern"
        return "What is returned"

async def later():
    """Write the rest. So it ends."""
'''
    found = [problem.split("; ")[0] for problem in fragments(module(text))]
    assert found == [
        "trainer.loop.x:1: 'What ...' is a fragment",
        "trainer.loop.x:4: 'Of ...' is a fragment",
        "trainer.loop.x:7: 'Where ...' is a fragment",
        "trainer.loop.x:10: 'In ...' is a fragment",
        "trainer.loop.x:17: 'Whether ...' is a fragment",
    ]


def test_everything_public_has_a_docstring(modules: Sequence[Module]) -> None:
    assert docstrings(modules) == []


def test_a_missing_docstring_is_found() -> None:
    text = '''
class A:
    """A."""

    def public(self):
        pass

    def _private(self):
        pass

    @x.setter
    def x(self, value):
        pass

    async def later(self):
        """B."""
        def inner():
            pass

class B:
    pass

class _C:
    def public(self):
        pass

def f():
    pass
'''
    assert docstrings(module(text)) == [
        "trainer.loop.x: no docstring",
        "trainer.loop.x:5: public has no docstring",
        "trainer.loop.x:20: B has no docstring",
        "trainer.loop.x:27: f has no docstring",
    ]


def test_functions_take_few_parameters(modules: Sequence[Module]) -> None:
    assert parameters(modules) == []


def test_a_function_of_many_parameters_is_found() -> None:
    def function(count: int, first: str) -> str:
        return f"def f({', '.join([first, *(f'a{index}' for index in range(count - 1))])}, *, last): pass\n"

    assert parameters(module(function(MAX_PARAMETERS, "self"))) == []
    assert parameters(module(function(MAX_PARAMETERS - 1, "x"))) == []
    assert parameters(module(function(MAX_PARAMETERS, "x"))) == ["trainer.loop.x:1: f takes 9, at most 8"]


def test_rooms_are_given_what_they_need_and_not_the_config_of_the_whole(modules: Sequence[Module]) -> None:
    reads = plan_config_reads(modules)
    assert len(reads) <= MAX_PLAN_CONFIG_READS, reads


def test_a_read_of_the_whole_config_is_found() -> None:
    text = "plan.config\nself._plan.config\nsession.plan.config.train\nplan.dtype\nroom.config\n"
    assert plan_config_reads(module(text)) == ["trainer.loop.x:1", "trainer.loop.x:2", "trainer.loop.x:3"]
    assert plan_config_reads(module(text, "trainer.config.plan")) == []
