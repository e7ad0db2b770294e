"""wandb's own variables: command line > environment > file > default, the same for every one of them."""

from __future__ import annotations

import pytest

from trainer.config.compose import compose, recompose, to_yaml
from trainer.config.keys import flatten
from trainer.config.validate import problems
from trainer.config.wandb_variables import VARIABLES, folder_in_sweep, told, who_asks_for
from trainer.errors import ConfigError

SAMPLES: dict[str, tuple[str, object, str, object]] = {
    "WANDB_PROJECT": ("of-env", "of-env", "of-words", "of-words"),
    "WANDB_ENTITY": ("team", "team", "other", "other"),
    "WANDB_NAME": ("a name: ${x}", "a name: ${x}", "'b c'", "b c"),
    "WANDB_RUN_GROUP": ("g", "g", "h", "h"),
    "WANDB_JOB_TYPE": ("sweep", "sweep", "eval", "eval"),
    "WANDB_TAGS": ("a, b,,c ${d}", ("a", "b", "c ${d}"), "[x]", ("x",)),
    "WANDB_NOTES": ("50 % of ${it} \\", "50 % of ${it} \\", "n", "n"),
    "WANDB_RUN_ID": ("abc123", "abc123", "def", "def"),
    "WANDB_RESUME": ("auto", "allow", "never", "never"),
    "WANDB_DIR": ("/scratch/${user}", "/scratch/${user}", "/tmp/w", "/tmp/w"),
}
"""Variable -> its value, what the key is then, the word on the command line, what the key is then."""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "WANDB_MODE", "WANDB_DISABLED", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)


def resolved(*words: str) -> dict[str, object]:
    return {key: getattr(value, "value", value) for key, value in flatten(compose(words)).items()}


def test_there_is_a_sample_of_each() -> None:
    assert set(SAMPLES) == set(VARIABLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_environment_beats_files_and_the_command_line_beats_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value, in_env, word, in_words = SAMPLES[name]
    default = resolved()
    monkeypatch.setenv(name, f" {value} ")
    assert resolved()[VARIABLES[name]] == in_env != default[VARIABLES[name]] or name == "WANDB_RESUME"
    assert resolved("logging=all", "experiment=debug", "logging.wandb=auto")[VARIABLES[name]] == in_env
    assert resolved(f"{VARIABLES[name]}={word}")[VARIABLES[name]] == in_words
    assert {**resolved(), VARIABLES[name]: 0} == {**default, VARIABLES[name]: 0}, "another key changed"


@pytest.mark.parametrize("name", [*SAMPLES, "WANDB_MODE", "WANDB_DISABLED", "WANDB_SWEEP_ID"])
@pytest.mark.parametrize("blank", ["", "  "])
def test_a_blank_variable_is_none(name: str, blank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    default = resolved()
    monkeypatch.setenv(name, blank)
    assert resolved() == default


def test_null_on_the_command_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "left-over")
    assert resolved("logging.wandb_run_id=null")["logging.wandb_run_id"] is None


def test_it_can_be_referred_to_and_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    config = compose(["name=${logging.wandb_project}"])
    assert config.name == "mine"
    assert "wandb_project: mine" in to_yaml(config)
    assert recompose(config, ["train.steps=3"], ["train"]).logging.wandb_project == "mine"


@pytest.mark.parametrize(
    ("environ", "words", "mode"),
    [
        ({"WANDB_MODE": "offline"}, [], "offline"),
        ({"WANDB_MODE": "dryrun"}, ["logging.wandb=auto"], "offline"),
        ({"WANDB_MODE": "Disabled"}, ["experiment=gpt2_124m_8gpu"], "disabled"),
        ({"WANDB_MODE": "run"}, [], "online"),
        ({"WANDB_MODE": "offline"}, ["logging.wandb=online"], "online"),
        ({"WANDB_MODE": "bogus"}, ["logging.wandb=online"], "online"),
        ({"WANDB_MODE": "online"}, ["logging=local"], "disabled"),
        ({"WANDB_MODE": "offline"}, ["logging=all"], "offline"),
        ({"WANDB_DISABLED": "true"}, [], "disabled"),
        ({"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, [], "disabled"),
        ({"WANDB_DISABLED": "YES"}, ["logging.wandb=offline"], "offline"),
        ({"WANDB_DISABLED": "false", "WANDB_MODE": "offline"}, [], "offline"),
        ({"WANDB_DISABLED": "0"}, [], "auto"),
    ],
)
def test_the_mode(environ: dict[str, str], words: list[str], mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert resolved(*words)["logging.wandb"] == mode


@pytest.mark.parametrize("name", ["WANDB_MODE", "WANDB_DISABLED", "WANDB_RESUME"])
def test_a_value_that_wandb_does_not_know_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "bogus")
    with pytest.raises(ConfigError, match=rf"^{name} must be .*, but is 'bogus'; unset it"):
        compose([])


def test_turned_off_by_the_environment_nothing_else_of_wandb_is_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["logging.wandb_group=g", "logging.stall_alert_s=5", "logging.wandb_project=a/b"]
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert problems(compose(words)) == []
    monkeypatch.delenv("WANDB_DISABLED")
    assert len(problems(compose([*words, "logging.wandb=disabled"]))) == 2


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        (
            "WANDB_PROJECT",
            "team/mine",
            "logging.wandb_project (WANDB_PROJECT) must have none of / \\ # ? % :, but has /",
        ),
        (
            "WANDB_PROJECT",
            "x" * 129,
            "logging.wandb_project (WANDB_PROJECT) must have at most 128 characters, but has 129",
        ),
        ("WANDB_RUN_ID", "a:b", "logging.wandb_run_id (WANDB_RUN_ID) must have none of"),
        ("WANDB_TAGS", "a," + "b" * 65, "logging.wandb_tags (WANDB_TAGS) must have 1 to 64 characters each, but has"),
    ],
)
def test_names_that_wandb_would_refuse_are_refused_before(
    name: str, value: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    [found] = problems(compose([]))
    assert found.startswith(problem)


def test_a_blank_name_is_refused() -> None:
    [found] = problems(compose(["logging.wandb_project="]))
    assert found.startswith("logging.wandb_project (WANDB_PROJECT) must be a name without blanks around it, but is ''")


SWEEP = {"WANDB_SWEEP_ID": "swp1", "WANDB_RUN_ID": "abc12345", "WANDB_PROJECT": "sweeps"}


def test_each_run_of_a_sweep_has_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SWEEP.items():
        monkeypatch.setenv(name, value)
    assert resolved()["run_dir"] == "runs/default/abc12345"
    assert resolved("run_dir=/shared/lr")["run_dir"] == "/shared/lr/abc12345"
    assert resolved("run_dir=/r/${oc.env:WANDB_RUN_ID}/x")["run_dir"] == "/r/abc12345/x"
    assert resolved(f"run_dir={resolved()['run_dir']}") == resolved(), "ranks are told the folder"
    monkeypatch.delenv("WANDB_SWEEP_ID")
    assert resolved()["run_dir"] == "runs/default", "an id alone is no sweep"


def test_a_sweep_left_over_without_a_run_is_none() -> None:
    assert folder_in_sweep("runs/x", {"WANDB_SWEEP_ID": "swp1"}) == "runs/x"


def test_what_belongs_to_the_sweep_cannot_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SWEEP.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as found:
        compose(["logging.wandb_project=mine", "logging.wandb_run_id=mine"])
    assert list(found.value.problems) == [
        "logging.wandb_project must be left out in a wandb sweep, which has its own (WANDB_PROJECT=sweeps)",
        "logging.wandb_run_id must be left out in a wandb sweep, which has its own (WANDB_RUN_ID=abc12345)",
    ]
    assert resolved("logging.wandb_project=sweeps", "logging.wandb_group=g")["logging.wandb_group"] == "g"


def test_who_decided_is_told() -> None:
    environ = {
        "WANDB_PROJECT": "mine",
        "WANDB_TAGS": "a,b",
        "WANDB_NAME": "n",
        "WANDB_NOTES": "",
        "WANDB_RESUME": "auto",
    }
    values = {**flatten(compose([])), "logging.wandb_project": "mine", "logging.wandb_tags": ("a", "b")}
    assert told(environ, values) == [
        "WANDB_PROJECT=mine",
        "WANDB_NAME=n (overruled by logging.wandb_name)",
        "WANDB_TAGS=a,b",
        "WANDB_RESUME=auto",
    ]
    assert who_asks_for("disabled", {"WANDB_DISABLED": "on"}) == "WANDB_DISABLED=on"
    assert who_asks_for("offline", {"WANDB_MODE": "bogus"}) is None
