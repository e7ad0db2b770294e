# ruff: noqa: E501 - messages are compared whole
"""Words of the command line: what they mean, and what is proposed where they can mean several things."""

from __future__ import annotations

import shlex
import string
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config.arguments import plain, read_arguments
from trainer.config.compose import compose
from trainer.config.request import read_request
from trainer.config.words import for_a_shell, parse, quoted
from trainer.errors import ConfigError


def value_of(word: str) -> object:
    return parse(word).value()


def problem_of(word: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(word)
    [problem] = caught.value.problems
    return problem


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("data.files=[a=1.txt,b.txt]", ["a=1.txt", "b.txt"]),
        ("data.files=[~/x.txt]", ["~/x.txt"]),
        ("logging.wandb_tags=[lr=1e-3,bs]", ["lr=1e-3", "bs"]),
        ("run_dir=runs/it's", "runs/it's"),
        ("run_dir=runs/é", "runs/é"),
        ("run_dir=~/x", "~/x"),
        ("run_dir=~", "~"),
        ("run_dir=a=b", "a=b"),
        ("run_dir=50%@home#1", "50%@home#1"),
        ("run_dir=${oc.env:X,${name}}", "${oc.env:X,${name}}"),
        ("data.files=corpus/[ab]*.txt", "corpus/[ab]*.txt"),
        ("data.files=[corpus/[a,b]*.txt,é]", ["corpus/[a,b]*.txt", "é"]),
        ("data.hub_split=train[:50%]", "train[:50%]"),
        ("eval.prompts=[hi :),it's me]", ["hi :)", "it's me"]),
        ("eval.prompts=[def f(x:,y]", ["def f(x:", "y"]),
        ("eval.prompts=[f(a,b)]", ["f(a,b)"]),
        ("eval.prompts=['a, b',\"it's\"]", ["a, b", "it's"]),
        ("name=a(", "a("),
        ("name=a\\,é", "a,é"),
        ("name=日本", "日本"),
        ("name==", "="),
        ("name=", ""),
    ],
)
def test_what_can_mean_one_thing_only_needs_no_quotes(word: str, value: object) -> None:
    assert value_of(word) == value


@pytest.mark.parametrize(
    ("word", "fault", "proposal"),
    [
        ("run_dir=[a", "'[' is not closed", "run_dir='[a'"),
        ("data.files=[a,b", "'[' is not closed", "data.files=[a,b]"),
        ("data.files=a,b]", "']' closes nothing", "data.files=[a,b]"),
        ("data.files=[ab]*.txt", "'*' follows the ']' of a list", "data.files=['[ab]*.txt']"),
        ("data.files=[a,,b]", "there is nothing beside one of its commas", "data.files=[a,b]"),
        ("data.files=[a,{b:é}]", "'{' begins a mapping, and no key takes one", "data.files=[a,'{b:é}']"),
        ("name='abc", "the quote ' is not closed", "name=\"'abc\""),
        ("name='it''s'", "''' follows the closing quote '", "name=\"'it''s'\""),
        ("eval.prompts=[\"a\" b,c]", "'b' follows the closing quote \"", "eval.prompts=['\"a\" b',c]"),
        ("name=a[b,c", "'[' is not closed", "name='a[b,c'"),
        ("data.files=[a,b\\]", "'[' is not closed", "data.files=[a,'b\\\\']"),
        ("data.files=['a')]", "')' follows the closing quote '", "data.files=[\"'a')\"]"),
        ("data.files=['':]", "':' follows the closing quote '", "data.files=[\"'':\"]"),
        ("eval.prompts=['a': b,c]", "':' follows the closing quote '", "eval.prompts=[\"'a': b\",c]"),
        ("name='a':b", "':' follows the closing quote '", "name=\"'a':b\""),
    ],
)  # fmt: skip
def test_the_character_at_fault_is_named_and_the_proposal_is_meant(word: str, fault: str, proposal: str) -> None:
    problem = problem_of(word)
    start, _, shell = problem.partition("; write ")
    assert start == f"'{word}' cannot be read as key=value: {fault}"
    assert shlex.split(shell) == [proposal]
    parse(proposal)


def test_functions_of_the_grammar_stay_functions() -> None:
    assert parse("optimizer.lr=range(1,4)").is_sweep_override()
    assert parse("name=choice(é,it's)").input_line == "name=choice('é',\"it's\")"
    assert "TypeError while evaluating 'range(a,b)'" in problem_of("optimizer.lr=range(a,b)")


def test_commas_still_separate() -> None:
    override = parse("name=é,b")
    assert override.is_sweep_override()
    assert list(override.sweep_string_iterator()) == ["'é'", "b"]


@pytest.mark.parametrize("word", ["mödel=3", "a b=3", "~é", "+x y=1"])
def test_an_unreadable_key_is_an_unknown_one(word: str) -> None:
    assert problem_of(word).startswith("there is no key ")


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
NASTY = st.text(st.sampled_from("ab ,[]{}()'\"\\$~=#%@!:`é*\t" + string.digits), min_size=1, max_size=10)


@settings(max_examples=80, deadline=None)
@given(TEXTS | NASTY)
def test_a_quoted_text_is_read_back_also_by_a_shell(text: str) -> None:
    word = f"name={quoted(text)}"
    assert value_of(word) == text
    assert shlex.split(for_a_shell(word)) == [word]


@settings(max_examples=80, deadline=None)
@given(NASTY)
def test_a_text_is_read_as_itself_or_proposed_as_itself(text: str) -> None:
    try:
        override = parse(f"name={text}")
    except ConfigError as error:
        _, has_proposal, shell = error.problems[0].partition("; write ")
        if has_proposal:
            [word] = shlex.split(shell)
            assert value_of(word) == text.strip()
        return
    value = override.value()
    # What Hydra's grammar gives a meaning of its own: sweeps, lists, numbers, quotes, escapes.
    if isinstance(value, str) and not override.is_sweep_override() and not set(text) & set("'\"\\"):
        assert value.strip(" \t") == text.strip(" \t")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab ~=#%@!:é*.'()\\"), min_size=1, max_size=6), min_size=1, max_size=3))
def test_items_of_a_list_too(items: list[str]) -> None:
    word = f"data.files=[{','.join(items)}]"
    try:
        found = value_of(word)
    except ConfigError as error:
        [word] = shlex.split(error.problems[0].partition("; write ")[2])
        found = value_of(word)
    if not any(set(item) & set("'()\\") for item in items):
        assert isinstance(found, list)
        assert [str(item).strip() for item in found] == [item.strip() for item in items if item.strip()]


def test_a_real_shell_reads_a_proposal() -> None:
    words = [f"name={quoted(text)}" for text in ("it's", '$HOME "x"', "a!b", "back\\slash'", "`ls`")]
    script = "printf '%s\\n' " + " ".join(map(for_a_shell, words))
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.splitlines() == words


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["--optimizer.lr=0.001"], ["optimizer.lr=0.001"]),
        (["--optimizer.lr", "0.001"], ["optimizer.lr=0.001"]),
        (["--optimizer.lr", "-1"], ["optimizer.lr=-1"]),
        (["--run-dir", "runs/x", "train.steps=3"], ["run_dir=runs/x", "train.steps=3"]),
        (["--train.log-every=5"], ["train.log_every=5"]),
        (["--layout.sequence_parallel", "--model=gpt_debug"], ["layout.sequence_parallel=true", "model=gpt_debug"]),
        (["--layout.sequence_parallel", "False"], ["layout.sequence_parallel=False"]),
        (["--data.files=['a.txt', 'b.txt']"], ["data.files=['a.txt', 'b.txt']"]),
        (["--name", "a=b"], ["name=a=b"]),
    ],
)
def test_settings_as_other_launchers_write_them(typed: list[str], meant: list[str]) -> None:
    found = read_arguments(typed)
    assert (found.settings, found.problems) == (meant, [])
    assert compose(typed) == compose(meant)


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        (["--num-layers", "24"], "there is no option '--num-layers'; did you mean the setting 'model.num_layers', as in model.num_layers=24?"),
        (["--num-layers=24"], "there is no option '--num-layers'; did you mean the setting 'model.num_layers', as in model.num_layers=24?"),
        (["--qqq", "24", "train.steps=3"], "there is no option '--qqq=24'; settings are written key=value, for example train.steps=10"),
        (["--optimizer.lr"], "--optimizer.lr must be followed by its value, but nothing follows; write optimizer.lr=..."),
        (["--optimizer.lr", "train.steps=3"], "--optimizer.lr must be followed by its value, but nothing follows; write optimizer.lr=..."),
        (["-x"], "there is no option '-x'; settings are written key=value, for example train.steps=10"),
        (["--config-dir"], "--config-dir must be followed by a folder, but nothing follows"),
    ],
)  # fmt: skip
def test_one_problem_a_word(typed: list[str], problem: str) -> None:
    assert read_arguments(typed).problems == [problem]


def test_plain_words_mean_the_same_to_hydras_grammar() -> None:
    typed = ["--name", "it's", "-cd", "here", "optimizer.lr=1,2", "--config-name=mine"]
    assert plain(typed) == ["--config-dir=here", "--config-name=mine", 'name="it\'s"', "optimizer.lr=1,2"]
    assert plain(["--nope", "3"]) == ["--nope", "3"]


@pytest.mark.parametrize("text", ["007", "1e4", "true", "1_000", "0x10", "nan"])
def test_texts_in_a_list_stay_what_was_typed(text: str) -> None:
    assert compose([f"logging.wandb_tags=[{text},b]"]).logging.wandb_tags == (text, "b")
    assert compose([f"name={text}"]).name == text


@pytest.mark.parametrize(
    ("word", "told"),
    [
        (
            'optimizer={"lr": 0.1}',
            "optimizer takes the name of a file in conf/optimizer; set single keys as optimizer.lr=...",
        ),
        (
            "optimizer={lr: 0.1}",
            "optimizer takes the name of a file in conf/optimizer; set single keys as optimizer.lr=...",
        ),
        ("model={a: 1, hidden_size: 3", "set single keys as model.hidden_size=..."),
        ("layout={}", "set single keys as layout.key=value"),
        ('experiment={"a": 1}', "set single keys as train.steps=..."),
        ("args.yaml", "config=args.yaml, for one that sets some keys experiment=./args.yaml"),
        ("/a b/args.yml", "'config=/a b/args.yml', for one that sets some keys 'experiment=/a b/args.yml'"),
    ],
)
def test_a_mapping_or_a_file_in_the_place_of_a_setting(word: str, told: str) -> None:
    [problem] = read_request([word]).problems
    assert problem.endswith(told)
