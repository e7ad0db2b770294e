from __future__ import annotations

import pytest

from trainer.config.keys import joined
from trainer.errors import ConfigError
from trainer.verbs.declare import Option, Takes, Verb
from trainer.verbs.parse import Words, parse
from trainer.verbs.table import NAMES, find_verb

VERB = Verb(
    name="bake",
    summary="bake",
    run=lambda words: 0,
    takes_settings=True,
    options=(
        Option("--all", "all of it", aliases=("-a",)),
        Option("--form", "its form", aliases=("-f",), takes=Takes.choice, choices=("round", "square")),
        Option("--from", "where from", takes=Takes.folder, metavar="FOLDER", repeats=True),
        Option("--twice", "twice", needs="--all"),
        Option("--thrice", "thrice", needs="--all"),
        Option("--quiet", "quiet", setting="logging.console=quiet"),
        Option("--secret", "none", is_hidden=True),
    ),
)
COMPOSE = [f"`trident {name}`" for name in NAMES if find_verb(name).option("--config-dir")]


def problems_of(*arguments: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(VERB, arguments)
    assert caught.value.hints == ("see `trident bake --help`",)
    return caught.value.problems


def test_options_may_stand_anywhere_and_settings_keep_their_order() -> None:
    words = parse(VERB, ["a=1", "-a", "b=2", "--form", "round", "SRC", "--twice"])
    assert words == Words({"--all": ("",), "--form": ("round",), "--twice": ("",)}, ("a=1", "b=2", "SRC"))
    assert words.has("--all")
    assert not words.has("-a")
    assert not words.has("--from")


@pytest.mark.parametrize("form", [["--form", "square"], ["--form=square"], ["-f", "square"], ["-f=square"]])
def test_a_value_follows_or_is_joined(form: list[str]) -> None:
    words = parse(VERB, [*form, "x"])
    assert (words.value("--form"), words.rest) == ("square", ("x",))
    assert words.value("--from") is None


def test_a_value_may_hold_an_equals_sign_or_begin_with_a_dash() -> None:
    assert parse(VERB, ["--from", "a=b", "--from=-c=d", "--from", "-e"]).values("--from") == ("a=b", "-c=d", "-e")


def test_an_option_that_is_short_for_a_setting_becomes_it_in_its_place() -> None:
    assert parse(VERB, ["a=1", "--quiet", "b=2"]).rest == ("a=1", "logging.console=quiet", "b=2")


@pytest.mark.parametrize("word", ["--optimizer.lr=1", "--num-layers", "-x", "-1", "--", "-", "", "~a"])
def test_words_with_dashes_that_are_no_option_are_left_to_the_settings(word: str) -> None:
    assert parse(VERB, [word]).rest == (word,)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--al"], "there is no option '--al'; did you mean --all?"),
        (["--fornm=round"], "there is no option '--fornm'; did you mean --form?"),
        (["--form", "ruond"], "--form must be one of round, square, but is 'ruond'; did you mean 'round'?"),
        (["--form"], "--form must be followed by round|square, but nothing follows"),
        (["-f", "--all"], "-f must be followed by round|square, but nothing follows"),
        (["--from="], "--from must be followed by FOLDER, but nothing follows"),
        (["--form=round", "-f", "square"], "-f must be given once, but is given again with 'square'"),
        (["--all=yes"], "--all must stand alone, but is given 'yes'"),
        (["--twice"], "--twice needs --all, but it is not there; add it, or leave it out"),
        (["--thrice", "--twice"], "--twice and --thrice need --all, but it is not there; add it, or leave them out"),
    ],
)
def test_a_wrong_option_is_named(words: list[str], problem: str) -> None:
    assert problems_of(*words) == (problem,)


def test_all_wrong_options_are_named_at_once() -> None:
    assert len(problems_of("--al", "x", "--form=oval", "--all=1")) == 3


def test_a_hidden_option_is_understood_but_never_proposed() -> None:
    assert parse(VERB, ["--secret"]).has("--secret")
    assert parse(VERB, ["--secre"]).rest == ("--secre",)


def test_a_verb_without_settings_has_no_other_options() -> None:
    with pytest.raises(ConfigError, match="there is no option '--zzz'"):
        parse(Verb("list", "list", run=lambda words: 0), ["--zzz=1"])


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("--version", "write `trident --version`"),
        ("-V", "write `trident --version`"),
        ("--show-completion=bash", "write `trident --show-completion`"),
        ("--cfg", "it is an option of `trident train`"),
        ("--multirun", "it is an option of `trident train`"),
        ("-m", "it is an option of `trident train`"),
        (
            "--config-dir=x",
            f"it is an option of {joined(COMPOSE, last='and')}",
        ),
    ],
)
def test_an_option_that_is_elsewhere(word: str, told: str) -> None:
    name = word.partition("=")[0]
    assert problems_of(word, "job") == (f"there is no option '{name}' of `trident bake`; {told}",)


def test_a_value_of_a_key_may_look_like_an_option_of_another_verb() -> None:
    assert parse(find_verb("generate"), ["--prompt", "-m"]).rest == ("--prompt", "-m")
    with pytest.raises(ConfigError, match="--cfg"):
        parse(find_verb("generate"), ["--cfg", "job"])
