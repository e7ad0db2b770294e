from __future__ import annotations

import pytest

from trainer.config.keys import GROUPS, KEYS
from trainer.generation.options import KEYS as GENERATE_KEYS
from trainer.verbs import table
from trainer.verbs.declare import Takes, Verb
from trainer.verbs.table import NAMES, find_verb, named_verb, verbs_below
from trainer.verbs.usage import overview, rows, usage

VERBS = [find_verb(name) for name in NAMES]


@pytest.mark.parametrize("verb", VERBS, ids=NAMES)
def test_everything_that_a_verb_takes_has_its_sentence(verb: Verb) -> None:
    told = {
        "the verb": verb.summary,
        **{one.metavar: one.sentence for one in verb.positionals},
        **{f"{one.metavar} {name}": text for one in verb.positionals for name, text in (one.choices or {}).items()},
        **{key.name: key.sentence for key in verb.keys},
        **{option.name: option.sentence for option in verb.options},
    }
    assert {
        name: text for name, text in told.items() if len(text) < 10 or text != text.strip() or text[-1] == "."
    } == {}


@pytest.mark.parametrize("verb", VERBS, ids=NAMES)
def test_a_summary_is_one_line_of_the_commands_help(verb: Verb) -> None:
    """On 80 columns, beside the longest name of a verb."""
    assert len(verb.summary) <= 66


@pytest.mark.parametrize("verb", VERBS, ids=NAMES)
def test_options_are_declared_well(verb: Verb) -> None:
    names = [name for option in verb.options for name in (option.name, *option.aliases)]
    assert len(names) == len(set(names))
    assert not {"--help", "-h"} & set(names)
    for option in verb.options:
        assert option.name.startswith("--"), option
        assert not option.needs or verb.option(option.needs), option
        assert (option.takes is Takes.choice) == bool(option.choices), option
        assert option.takes is not Takes.nothing or not (option.metavar or option.repeats), option
        assert not option.setting or option.setting.partition("=")[0] in {*KEYS, *GROUPS}, option


@pytest.mark.parametrize("verb", VERBS, ids=NAMES)
@pytest.mark.parametrize("columns", ["70", "80", "100", "300"])
def test_help_fits_the_terminal(verb: Verb, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    texts = f"{usage(verb)}\n{overview(VERBS)}"
    examples = [f"  {example}" for example in verb.examples]
    assert max(len(line) for line in texts.splitlines() if line not in examples) <= min(int(columns), 120)


def test_the_help_of_generate_says_what_every_key_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    verb = find_verb("generate")
    assert [key.name for key in verb.keys] == [*GENERATE_KEYS, "layout"]
    assert "  top_k               Sample among this many likeliest tokens. 0: all (default 0)" in usage(verb)
    assert "or the folder or hub name of a Hugging\n" in usage(verb)
    assert (
        "                      Face model. A first word that is no key=value means it too (must be given)\n"
        in usage(verb)
    )


def test_a_long_head_gets_a_line_of_its_own() -> None:
    assert rows([("--a", "one"), ("--" + "b" * 40, "two")], 80) == ["  --a  one", "  --" + "b" * 40, "       two"]


def test_a_verb_below_another_has_two_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "NAMES", ("data", "data look", "plan"))
    assert named_verb(["data", "look", "x"]) == ("data look", ["x"])
    assert named_verb(["data", "data=files"]) == ("data", ["data=files"])
    assert named_verb(["data"]) == ("data", [])
    assert verbs_below("data") == ["look"]
    assert verbs_below("plan") == []
