# ruff: noqa: E501 - messages are compared whole
"""The user's own config files: where they are found, what they may hold, how what is wrong with them is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.config.compose import Composition, compose, composition, options, to_yaml
from trainer.errors import ConfigError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes files below an empty folder that the user stands in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRIDENT_CONFIG_DIR", raising=False)

    def write(name: str, content: str | bytes = "") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def problems_of(*words: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        compose(words)
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


def mine(write: Write, text: str | bytes, *words: str) -> Composition:
    write("conf/experiment/mine.yaml", text)
    return composition(["experiment=mine", *words])


def problems_of_mine(write: Write, text: str | bytes) -> list[str]:
    """What is said of an own recipe, without its name."""
    write("conf/experiment/mine.yaml", text)
    return [problem.removeprefix("conf/experiment/mine.yaml") for problem in problems_of("experiment=mine")]


STEPS = "train: {steps: %d}\n"


def test_a_folder_beside_the_user_is_searched(write: Write) -> None:
    found = mine(write, STEPS % 7)
    assert found.config.train.steps == 7
    assert found.told() == ["experiment=mine is conf/experiment/mine.yaml"]
    assert "mine" in options()["experiment"]


def test_a_file_that_has_changed_is_read_again(write: Write) -> None:
    for steps in (7, 8):
        assert mine(write, STEPS % steps).config.train.steps == steps


def test_the_first_folder_that_has_a_file_wins(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("one", "two", "three", "four", "conf"), 1):
        write(f"{name}/experiment/mine.yaml", STEPS % number)
    monkeypatch.setenv("TRIDENT_CONFIG_DIR", ":three::four:")
    by_option, by_word = ["--config-dir", "one"], "hydra.searchpath=[two]"
    assert compose(["experiment=mine", *by_option, by_word]).train.steps == 1
    assert compose(["experiment=mine", by_word]).train.steps == 2
    assert compose(["experiment=mine"]).train.steps == 3
    monkeypatch.setenv("TRIDENT_CONFIG_DIR", "four")
    assert compose(["experiment=mine"]).train.steps == 4
    monkeypatch.setenv("TRIDENT_CONFIG_DIR", "")
    assert compose(["experiment=mine"]).train.steps == 5


@pytest.mark.parametrize("option", [["--config-dir=own"], ["--config-dir", "own"], ["-cd", "own"], ["--config-path=own"], ["-cp", "own"], ["hydra.searchpath=[own]"], ["hydra.searchpath=[file://own]"], ["hydra.searchpath=own"]])  # fmt: skip
def test_every_way_to_name_a_folder(option: list[str], write: Write) -> None:
    write("own/experiment/mine.yaml", STEPS % 6)
    assert compose([*option, "experiment=mine"]).train.steps == 6


def test_a_package_can_hold_config_files(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("own_package_of_configs/__init__.py")
    write("own_package_of_configs/experiment/mine.yaml", STEPS % 8)
    monkeypatch.syspath_prepend(".")
    assert compose(["hydra.searchpath=[pkg://own_package_of_configs]", "experiment=mine"]).train.steps == 8
    assert problems_of("hydra.searchpath=[pkg://no.such]") == (
        "hydra.searchpath must name a package that is installed, but pkg://no.such is not",
    )


def test_an_own_file_goes_before_one_that_ships(write: Write) -> None:
    write("conf/model/gpt_debug.yaml", "hidden_size: 96\nnum_attention_heads: 8\n")
    found = composition([])
    assert found.config.model.hidden_size == 96
    assert found.told() == ["model=gpt_debug is conf/model/gpt_debug.yaml"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--config-dir", "nope"], "--config-dir must name a folder of config files, but nope does not exist"),
        (["--config-dir", "file"], "--config-dir must name a folder of config files, but file is a file"),
        (["hydra.searchpath=[nope]"], "hydra.searchpath must name a folder of config files, but nope does not exist"),
        (["hydra.searchpath={a:b}"], "hydra.searchpath must be a list of folders, such as hydra.searchpath=[my_conf], but is {'a': 'b'}"),
        (["hydra.searchpth=[x]"], "'hydra.searchpth=[x]' has no effect: Trident uses Hydra only to compose; the run's folder is run_dir; did you mean 'hydra.searchpath'?"),
        (["experiment=mien"], "there is no experiment=mien; did you mean experiment=mine?"),
        (["experiment=./nope.yaml"], "experiment=./nope.yaml must name a YAML file, but nope.yaml does not exist"),
        (["config=nope.yaml"], "config must name the config of a run, or a run's folder, but nope.yaml does not exist"),
        (["config=conf"], "config must name the config of a run, or a run's folder, but conf is a folder without config.yaml"),
    ],
)  # fmt: skip
def test_what_is_not_there(words: list[str], problem: str, write: Write) -> None:
    write("file")
    write("conf/experiment/mine.yaml")
    assert problems_of(*words) == (problem,)


def test_a_variable_that_names_no_folder(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIDENT_CONFIG_DIR", "nope")
    assert problems_of() == ("TRIDENT_CONFIG_DIR must name a folder of config files, but nope does not exist",)
    assert options()["experiment"]


@pytest.mark.parametrize("path", ["./x/mine.yaml", "x/mine.yaml", "x/mine", "x/mine.yml", "~/x/mine.yaml", "{}/x/mine.yaml", "x/it's.yaml"])  # fmt: skip
def test_a_path_is_a_choice(path: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    name = Path(path).name if "." in Path(path).name else "mine.yaml"
    # What is beside it can be picked by it.
    write(f"x/{name}", "defaults: [base, _self_]\nname: own\n")
    write("x/base.yaml", STEPS % 9)
    config = compose([f"experiment={path.format(tmp_path)}"])
    assert (config.name, config.train.steps) == ("own", 9)


def test_a_path_is_a_choice_for_any_group(write: Write) -> None:
    write("m.yaml", "defaults: [gpt_debug, _self_]\nhidden_size: 96\n")
    write("z.yaml", "stage: 2\n")
    config = compose(["model=./m.yaml", "zero=z.yaml"])
    assert (config.model.hidden_size, config.model.num_layers, config.zero.stage) == (96, 4, 2)


def test_files_in_folders_below_and_several_recipes(write: Write) -> None:
    write("conf/model/lab/small.yaml", "hidden_size: 80\n")
    write("conf/experiment/a.yaml", "train: {steps: 1, log_every: 5}\n")
    write("conf/experiment/b.yaml", "train: {steps: 2}\n")
    found = composition(["model=lab/small", "experiment=[a,b]"])
    assert (found.config.model.hidden_size, found.config.train.steps, found.config.train.log_every) == (80, 2, 5)
    assert found.told()[1:] == ["experiment=a is conf/experiment/a.yaml", "experiment=b is conf/experiment/b.yaml"]


def test_recipes_build_on_recipes_with_comments_and_anchors(write: Write) -> None:
    text = """
    # A comment before the header.
    # @package _global_
    # What it is for.
    defaults:
      - demo  # another recipe
      - override /model: gpt_debug
      - override /layout: single
      - _self_
    name: ${model.name}_${train.steps}  # a key and a comment
    optimizer: {lr: 3e-3}
    train: &train
      steps: 8
    """.replace("\n    ", "\n")
    config = mine(write, text).config
    assert (config.name, config.run_dir) == ("gpt_debug_8", "runs/gpt_debug_8")
    assert (config.layout.tensor_parallel_size, config.optimizer.lr, config.train.eval_every) == (1, 3e-3, 100)


def test_a_recipe_needs_no_header_and_a_byte_order_mark_is_none(write: Write) -> None:
    assert mine(write, b"\xef\xbb\xbfname: bom\r\ntrain:\r\n  steps: 4\r\n").config.train.steps == 4
    assert mine(write, "# @package model\nhidden_size: 32\n").config.model.hidden_size == 32
    assert mine(write, "").config == compose([])
    assert mine(write, "train:\n  # steps: 3\n").config == compose([])
    assert (
        mine(
            write, "x: &x {steps: 3}\n".replace("x: &x", "eval: &x").replace("steps", "samples") + ""
        ).config.eval.samples
        == 3
    )


def test_words_win_over_files(write: Write) -> None:
    config = mine(
        write, "defaults: [override /model: llama_debug]\ntrain: {steps: 8}\n", "train.steps=3", "model=gpt_debug"
    ).config
    assert (config.train.steps, config.model.name) == (3, "gpt_debug")


BAD: list[tuple[str | bytes, list[str]]] = [
    ("train:\n\tsteps: 1\n", [":2 must be YAML, but a tab stands where only spaces can; indent with spaces"]),
    ("# a\ntrain.steps: 1\n", [":2: 'train.steps' is one word here; write 'train:', and below it 'steps: ...'"]),
    ("train:\n  steps: 1\n  steps: 2\n", [":3 must have every key once, but has 'steps' again"]),
    ("- a\n", [":1 must hold `key: value`, but holds a list"]),
    ("text\n", [":1 must hold `key: value`, but holds one value"]),
    (b"name: caf\xe9\n", [":1 must be UTF-8, but holds the byte 0xe9; convert it, for example with iconv -f latin1 -t utf-8"]),
    ("train: {steps: 1\n", [":2 must be YAML, but while parsing a flow mapping expected ',' or '}', but got '<stream end>'"]),
    ("name: a: b\n", [":1 must be YAML, but a ':' stands where no key can be (is the indentation right, and is a text with ': ' in quotes?)"]),
    ("name: a\n---\nname: b\n", [":2 must be YAML, but there is a second document after '---'"]),
    ("name: !!python/name:os.system x\n", [":1 must be YAML, but could not determine a constructor for the tag 'tag:yaml.org,2002:python/name:os.system'"]),
    ("name: *x\n", [":1 must be YAML, but found undefined alias 'x'"]),
    ("1: a\n", [":1 must have a name for a key, but has '1'"]),
    ("# @package a b\nname: x\n", [":1 must be '# @package NAME', but is '# @package a b'"]),
    ("# @package foo\nlr: 1\n", [":2: there is no key 'foo.lr'; did you mean 'optimizer.lr'?"]),
    ("hydra:\n  run: {dir: x}\n", [":1: 'hydra' has no effect here: Trident uses Hydra only to compose"]),
    ("train: 3\n", [":1: 'train' is a group of keys and takes no value itself; set for example train.steps"]),
    ("train:\n  stesp: 3\n  steps: many\n", [":2: there is no key 'train.stesp'; did you mean 'train.steps'?", ":3: train.steps must be an integer, but is 'many'"]),
    ("data:\n  files: [a, 3, {b: c}]\n", [":2: data.files[2] must be a string, but is a mapping"]),
    ("defaults: demo\n", [":1: defaults must be a list, such as '- override /model: gpt2_124m', but is not"]),
    ("defaults:\n  - {a: b, c: d}\n", [":2: an entry of defaults must be 'group: name', the name of a file, or _self_"]),
    ("defaults:\n  - override model: gpt_debug\n", [":2: 'override model' picks a file of another group, which is written 'override /model'"]),
    ("defaults:\n  - /model: gpt_debug\n", [":2: '/model' picks a file of another group, which is written 'override /model'"]),
    ("defaults:\n  - override /modl: gpt_debug\n", [":2: there is no group 'modl'; did you mean 'model'?"]),
    ("defaults:\n  - override /model: gpt_debg\n", [":2: there is no model=gpt_debg; did you mean model=gpt_debug?"]),
    ("defaults:\n  - demoo\n", [":2: there is no experiment=demoo; did you mean experiment=demo?"]),
    ("name: a${b\n", [": name cannot be read: no viable alternative at input '${b'; a text that holds ${ is written \\${"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problems"), BAD)
def test_what_is_wrong_with_a_file_is_told_with_its_line(text: str | bytes, problems: list[str], write: Write) -> None:
    assert problems_of_mine(write, text) == problems


def test_a_model_file_that_repeats_its_group(write: Write) -> None:
    write("conf/model/mine.yaml", "model:\n  hidden_size: 64\n")
    [problem] = problems_of("model=mine")
    assert problem.startswith(
        "conf/model/mine.yaml:1: there is no key 'model.model': a file of this group holds the keys"
    )


def test_files_that_include_each_other(write: Write) -> None:
    start = "files must not include each other in a circle, but do: "
    write("conf/experiment/other.yaml", "defaults: [mine]\n")
    assert problems_of_mine(write, "defaults: [mine]\n") == [f"{start}experiment/mine -> experiment/mine"]
    assert problems_of_mine(write, "defaults: [other]\n") == [
        f"{start}experiment/mine -> experiment/other -> experiment/mine"
    ]


def test_things_that_are_no_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "conf/experiment/mine.yaml").mkdir(parents=True)
    assert problems_of("experiment=mine") == ("conf/experiment/mine.yaml must be a YAML file, but is a folder",)
    (tmp_path / "conf/experiment/gone.yaml").symlink_to("nothing")
    assert problems_of("experiment=gone") == (
        "conf/experiment/gone.yaml must be a YAML file, but is a link to nothing",
    )


def test_a_file_that_may_not_be_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("conf/experiment/mine.yaml", STEPS % 1)
    read = Path.read_bytes

    def refuse(self: Path) -> bytes:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert problems_of("experiment=mine") == (
        "conf/experiment/mine.yaml must be a file that can be read, but: Permission denied",
    )


def test_a_value_that_a_file_leaves_open(write: Write) -> None:
    text = "train:\n  steps: ???\n"
    assert mine(write, text, "train.steps=3").config.train.steps == 3
    assert problems_of("experiment=mine") == (
        "train.steps cannot be resolved: conf/experiment/mine.yaml leaves it open (???); give it a value",
    )


INTERPOLATIONS: list[tuple[str, str]] = [
    ("run_dir: ${oc.env:NOPE}/x", "run_dir (${oc.env:NOPE}/x) cannot be resolved: the environment variable NOPE is not set; set it, or give a default: ${oc.env:NOPE,DEFAULT}"),
    ('data: {files: [a, "${oc.env:NOPE}/b"]}', "data.files[1] (${oc.env:NOPE}/b) cannot be resolved: the environment variable NOPE is not set; set it, or give a default: ${oc.env:NOPE,DEFAULT}"),
    ('eval: {prompts: ["cost: ${price}"]}', "eval.prompts[0] (cost: ${price}) cannot be resolved: there is no key 'price'"),
    ("name: ${train.stesp}", "name (${train.stesp}) cannot be resolved: there is no key 'train.stesp'; did you mean 'train.steps'?"),
    ("name: ${name}", "name (${name}) cannot be resolved: its interpolations lead back to itself"),
    ("name: ${foo:1}", "name (${foo:1}) cannot be resolved: there is no resolver 'foo'; there are oc.env, oc.select, oc.decode, oc.create, oc.dict.keys, oc.dict.values, oc.deprecated and now"),
    ("name: ${oc.env}", "name (${oc.env}) cannot be resolved: there is no key 'oc.env'; write ${oc.env:...}"),
    ("name: ${oc.env:A,B,C}", "name (${oc.env:A,B,C}) cannot be resolved: env() takes from 1 to 2 positional arguments but 3 were given"),
    ("name: ${model}", "name (${model}) cannot be resolved: it gives several values, but the key takes one"),
    ("name: abc\ntrain: {steps: '${name}'}", "train.steps (${name}) cannot be resolved: it gives 'abc', which is no integer"),
    ("name: ${hydra:run.dir}", "name (${hydra:run.dir}) cannot be resolved: there is no hydra:run.dir here; there are hydra:runtime.cwd and hydra:runtime.choices.GROUP"),
    ("name: ${oc.decode:'[1'}", "name (${oc.decode:'[1'}) cannot be resolved: missing BRACKET_CLOSE at '<EOF>'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), INTERPOLATIONS)
def test_an_interpolation_that_fails_names_key_and_cause(text: str, problem: str, write: Write) -> None:
    write("conf/experiment/mine.yaml", text)
    assert problems_of("experiment=mine") == (problem,)


def test_two_keys_that_refer_to_each_other(write: Write) -> None:
    assert (
        len(problems_of("model.hidden_size=${model.ffn_hidden_size}", "model.ffn_hidden_size=${model.hidden_size}"))
        == 2
    )


def test_interpolations_that_resolve(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")
    text = """
    name: ${hydra:runtime.choices.model}_${oc.select:nothing,none}
    model: {hidden_size: 64, ffn_hidden_size: "${model.hidden_size}"}
    train: {steps: "${oc.decode:${oc.env:STEPS,'12'}}"}
    data:
      files: ["${oc.env:DATA}/a", "${oc.env:NOPE,${oc.env:DATA}}/b"]
    logging: {wandb_tags: "${oc.dict.keys:batch}", wandb_notes: "\\\\${price}"}
    """.replace("\n    ", "\n")
    config = mine(write, text).config
    assert (config.name, config.train.steps, config.model.ffn_hidden_size) == ("gpt_debug_none", 12, 64)
    assert config.data.files == ("/data/a", "/data/b")
    assert "micro_batch_size" in config.logging.wandb_tags
    assert config.logging.wandb_notes == "${price}"
    written = to_yaml(config)
    write("old.yaml", written)
    # Written and composed again, a text that holds ${ is still no interpolation.
    assert to_yaml(compose(["config=old.yaml"])) == written


def test_a_key_that_is_called_deprecated_warns_once(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert mine(write, "name: ${oc.deprecated:train.steps}\n").config.name == "100"
    err = capsys.readouterr().err
    assert err.count("deprecated") == 1
    assert "site-packages" not in err


def test_a_run_from_a_file(write: Write) -> None:
    old = compose(["experiment=demo", "train.steps=50", "name=old", "optimizer.lr=1"])
    write("runs/old/config.yaml", to_yaml(old))
    for word in ("config=runs/old/config.yaml", "config=runs/old", "config=./runs/old/"):
        assert compose([word]) == old
    changed = compose(["config=runs/old", "train.steps=60", "layout=single", "optimizer=adamw", "name=new"])
    assert (changed.train.steps, changed.layout.tensor_parallel_size, changed.train.eval_every) == (60, 1, 100)
    assert changed.optimizer.lr == 3e-4, "a group that is chosen takes all of its file's keys"
    assert changed.run_dir == "runs/new", "the folder follows the name"
    assert compose(["config=runs/old", "experiment=overfit"]).data.max_samples == 16
    assert compose(["config=runs/old", "experiment=gpt2_124m_8gpu"]).model.hidden_size == 768


def test_a_part_of_a_config_leaves_the_rest_as_it_is(write: Write) -> None:
    write("part.yaml", "train:\n  steps: 5\n")
    assert compose(["config=part.yaml"]) == compose(["train.steps=5"])
    write("part.yaml", "train:\n  stesp: 5\n")
    assert problems_of("config=part.yaml") == (
        "part.yaml:2: there is no key 'train.stesp'; did you mean 'train.steps'?",
    )


OWN_PRIMARY = "defaults:\n  - train\n  - override model: llama_debug\n  - _self_\ntrain:\n  steps: 11\n"


@pytest.mark.parametrize(
    "words", [["-cn", "own"], ["--config-name=own.yaml"], ["-cd", "conf", "--config-name", "own"], ["config=conf/own.yaml"], ["-cn", "conf/own"]]
)  # fmt: skip
def test_an_own_primary_config(words: list[str], write: Write) -> None:
    write("conf/own.yaml", OWN_PRIMARY)
    found = composition(words)
    assert (found.config.train.steps, found.config.model.name) == (11, "llama_debug")
    assert found.told() == ["the primary config is conf/own.yaml"]
    assert compose([*words, "model=gpt_debug", "train.steps=2"]).train.steps == 2


def test_a_primary_config_may_name_folders_and_needs_no_schema(write: Write) -> None:
    write(
        "conf/own.yaml",
        "hydra:\n  searchpath: ['${oc.env:NOPE,more}']\ndefaults: [experiment: mine, _self_]\nname: own\n",
    )
    write("more/experiment/mine.yaml", STEPS % 12)
    assert compose(["-cn", "own"]).train.steps == 12
    assert compose(["-cn", "own"]).run_dir == "runs/own", "the schema's"
    assert problems_of("-cn", "owm")[0].startswith("there is no config 'owm' in conf or ")


def test_another_projects_primary_config_is_left_alone(write: Write) -> None:
    write("conf/train.yaml", "defaults: [trainer: gpu]\nseed: 3\n")
    write("conf/model/resnet.yaml", "_target_: torchvision.models.resnet18\n")
    assert compose([]).train.steps == 100
    assert problems_of("model=resnet")[0].startswith("conf/model/resnet.yaml:1: there is no key 'model._target_'")


def test_a_copy_of_the_shipped_primary_config_is_used(write: Write) -> None:
    write("conf/train.yaml", "defaults: [trident_schema, model: llama_debug, _self_]\nname: copied\n")
    assert (compose([]).name, compose([]).model.name) == ("copied", "llama_debug")


def test_ranks_take_what_was_settled(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    settled = compose(["name=a", "logging.wandb_project=said"])
    path = write("run/config.yaml", to_yaml(settled))
    # Neither the environment nor a folder here can change it.
    monkeypatch.setenv("WANDB_PROJECT", "other")
    write("conf/train.yaml", "defaults: [trident_schema]\nname: b\n")
    assert compose([f"--settled-config={path}"]) == settled
    assert compose([f"--settled-config={path}", "checkpoint.resume=never"]).checkpoint.resume == "never"
