from __future__ import annotations

import re

import pytest

from tests.cli.conftest import Run
from trainer import __version__
from trainer.config.compose import options
from trainer.launcher.start import Outcome
from trainer.verbs.other_verbs import NO_VERB, OTHER_VERBS
from trainer.verbs.table import COMMAND_OPTIONS, NAMES


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help(words: list[str], trident: Run) -> None:
    answer = trident(*words)
    assert (answer.code, answer.err) == (0, "")
    for verb in ("train", "data", "generate", "import", "export", "checkpoint", "balance", "reshard"):
        assert f"\n  {verb} " in answer.out
    assert len(answer.out.splitlines()) <= 24


def test_help_of_train_lists_every_group_and_its_files(trident: Run) -> None:
    answer = trident("train", "--help")
    assert answer.code == 0
    for group, names in options().items():
        files = r"\s+".join(names)
        assert re.search(rf"^  {group} +{files}$", answer.out, re.MULTILINE), group


@pytest.mark.parametrize(
    "words", [["train", "-h"], ["train", "nonsense", "--help"], ["data", "--help"], ["generate", "-h"]]
)
def test_help_of_a_verb_wins_over_everything_else(words: list[str], trident: Run) -> None:
    answer = trident(*words)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("usage: trident")


def test_version(trident: Run) -> None:
    assert trident("--version").out == f"{__version__}\n"


def test_unknown_verb(refused: Run) -> None:
    answer = refused("trian")
    assert answer.problems[0].startswith("the verb must be one of train, plan, ")
    assert answer.problems[0].endswith("but is 'trian'")
    assert answer.hints == ["did you mean `trident train`?"]
    assert refused("qqq").hints == ["see `trident --help`"]


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("pretrain", "did you mean `trident train`?"),
        ("sample", "did you mean `trident generate`?"),
        ("tokenize", "did you mean `trident data`?"),
        ("eval", "did you mean `trident evaluate`?"),
        ("sweep", "did you mean `trident train --multirun`?"),
        ("model=gpt2_124m", "a verb comes first: `trident train model=gpt2_124m`"),
        ("--dry-run", "a verb comes first: `trident train --dry-run`"),
        ("-V", "did you mean `trident --version`?"),
        ("version", "did you mean `trident --version`?"),
    ],
)
def test_verbs_of_other_trainers(word: str, hint: str, refused: Run) -> None:
    assert refused(word).hints == [hint]


def test_verbs_of_other_trainers_lead_to_verbs() -> None:
    names = [name for table in (OTHER_VERBS, NO_VERB) for names in table for name in names.split()]
    assert len(names) == len(set(names))
    assert not set(names) & set(NAMES)
    options = {option.name for option in COMMAND_OPTIONS}
    assert {verb.partition(" ")[0] for verb in OTHER_VERBS.values()} <= {*NAMES, *options}


@pytest.mark.parametrize("word", ["--local_rank=3", "--local-rank=3"])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_launchers_local_rank_is_accepted_anywhere(word: str, position: int, refused: Run) -> None:
    words = ["train", "train.stesp=3"]
    words.insert(position, word)
    assert refused(*words).problems == ["there is no key 'train.stesp'; did you mean 'train.steps'?"]


def test_a_local_rank_in_two_words(refused: Run, trident: Run) -> None:
    assert (
        refused("--local_rank", "3", "train", "train.stesp=3").problems[0].startswith("there is no key 'train.stesp'")
    )
    assert trident("train", "--local_rank", "3", "--help").code == 0


def test_something_like_a_local_rank_is_no_launchers(refused: Run) -> None:
    assert "there is no option '--local_ranking=3'" in refused("train", "--local_ranking=3").problems[0]


def test_ctrl_c(trident: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> Outcome:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.supervise.start_and_watch", interrupted)
    answer = trident("train", "layout=tp2", "runtime.device=cpu")
    assert (answer.code, answer.err) == (130, "")


def test_a_fault_of_ours_keeps_its_traceback(trident: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> Outcome:
        raise ZeroDivisionError

    monkeypatch.setattr("trainer.supervise.start_and_watch", broken)
    with pytest.raises(ZeroDivisionError):
        trident("train", "layout=tp2", "runtime.device=cpu")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["checkpoint=x", "temprature=1"], "temperature"),
        (["checkpoint=x", "max_tokens=many"], "max_tokens must be"),
        (["checkpoint=x", "top_p=3"], "top_p must be"),
        (["checkpoint=x", "hello"], "must be key=value, but is 'hello'"),
        ([], "checkpoint must name"),
    ],
)
def test_wrong_options_of_generate(words: list[str], part: str, refused: Run) -> None:
    assert part in refused("generate", *words).problems[0]
