# ruff: noqa: E501 - messages are compared whole
from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trainer
from trainer.config import searched
from trainer.config.compose import compose, conf_folder, differences, from_yaml, options, to_yaml
from trainer.config.elastic import Elastic
from trainer.config.keys import GROUPS, KEYS
from trainer.config.schema import Dtype, LayoutConfig, OptimizerConfig, PipelineSchedule, TridentConfig
from trainer.errors import ConfigError


def problems_of(*overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    return caught.value.problems


def test_result_is_typed_and_frozen() -> None:
    config = compose(["precision=bf16", "layout.pipeline_schedule=1f1b", "layout.stage_boundaries=[1,2]"])
    assert config.precision.dtype is Dtype.bf16
    assert config.layout.pipeline_schedule is PipelineSchedule.f1b1
    assert config.layout.stage_boundaries == (1, 2)
    assert type(config.layout) is LayoutConfig
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.name = "other"  # type: ignore[misc]


def test_scientific_notation_is_a_number_in_files_and_overrides() -> None:
    assert compose([]).optimizer.lr == 3e-4  # adamw.yaml says 3e-4
    assert compose(["optimizer.lr=1e-4"]).optimizer.lr == 1e-4
    assert compose(["optimizer.lr=1"]).optimizer.lr == 1.0
    assert from_yaml("optimizer:\n  lr: 1e-4\n").optimizer.lr == 1e-4


def test_files_take_a_list_or_one_text() -> None:
    assert compose(["data.files=[a.txt,'b c.txt']"]).data.files == ("a.txt", "b c.txt")
    assert compose(["data.files=x.txt"]).data.files == ("x.txt",)
    assert compose(["data.files=corpus/*.jsonl"]).data.files == ("corpus/*.jsonl",)
    assert compose(["data.files="]).data.files == ()


def test_a_config_leaves_nothing_in_the_next_one_of_the_same_files() -> None:
    before = compose([])
    changed = compose(["data.files=[a.txt]", "train.steps=7", "model.num_layers=2", "logging.wandb_tags=[x]"])
    assert (changed.data.files, changed.train.steps, changed.logging.wandb_tags) == (("a.txt",), 7, ("x",))
    assert compose([]) == before


def test_a_name_stays_what_was_typed() -> None:
    for name in ("007", "1e4", "true-north", "2024.10"):
        config = compose([f"name={name}"])
        assert config.name == name
        assert config.run_dir == f"runs/{name}"


def test_null_only_where_there_is_a_default_to_fall_back_on() -> None:
    assert compose(["layout=dp2", "layout.data_parallel_size=null"]).layout.data_parallel_size is None
    assert problems_of("train.steps=null") == ("train.steps must be an integer, but is null",)


def test_a_number_or_a_word() -> None:
    config = compose(["layout=dp2", "layout.data_parallel_size=auto"])
    assert config.layout.data_parallel_size is Elastic.auto
    assert "data_parallel_size: auto\n" in to_yaml(config)
    assert from_yaml(to_yaml(config)) == config
    assert compose(["layout.data_parallel_size=auto", "layout.data_parallel_size=3"]).layout.data_parallel_size == 3


def test_interpolation_is_resolved_and_checked() -> None:
    assert compose(["name=a", "run_dir=/tmp/${name}-${train.seed}"]).run_dir == "/tmp/a-1234"
    assert compose(["batch.micro_batch_size=${train.log_every}"]).batch.micro_batch_size == 1
    assert problems_of("run_dir=${nothing}") == ("run_dir (${nothing}) cannot be resolved: there is no key 'nothing'",)
    assert len(problems_of("train.steps=${name}")) == 1
    assert len(problems_of("run_dir=${run_dir}")) == 1


def test_later_words_win() -> None:
    assert compose(["train.steps=1", "train.steps=2", "zero=stage2", "zero=stage0"]) == compose(
        ["train.steps=2", "zero=stage0"]
    )


def test_command_line_wins_over_experiment_whatever_the_order() -> None:
    config = compose(["layout=dp2", "train.steps=7", "experiment=demo"])
    assert (config.layout.data_parallel_size, config.layout.tensor_parallel_size, config.train.steps) == (2, 1, 7)
    assert config.train.eval_every == 100


@pytest.mark.parametrize(
    "words", [["--local_rank=3"], ["--local-rank=0"], ["--local_rank", "1"], ["--local-rank", "12"]]
)
def test_local_rank_of_a_launcher_is_ignored(words: list[str]) -> None:
    assert compose([*words, "name=x"]) == compose(["name=x"])


BAD: list[tuple[str, str]] = [
    ("optimizer.lr=abc", "optimizer.lr must be a number, but is 'abc'"),
    ("optimizer.lr=true", "optimizer.lr must be a number, but is true"),
    ("train.steps=1.5", "train.steps must be an integer, but is 1.5"),
    ("train.steps=1e5", "train.steps must be an integer (write 100000), but is 100000.0"),
    ("train.steps=many", "train.steps must be an integer, but is 'many'"),
    ("train.steps=", "train.steps must be an integer, but is ''"),
    ("layout.sequence_parallel=maybe", "layout.sequence_parallel must be true or false, but is 'maybe'"),
    ("name=null", "name must be a string, but is null"),
    ("name=[a]", "name must be a string, but is a list"),
    ("data.files=null", "data.files must be a list such as [a, b], but is null"),
    ("data.files={a:1}", "data.files must be a list such as [a, b], but is a mapping"),
    ("layout.stage_boundaries=[1,x]", "layout.stage_boundaries[1] must be an integer, but is 'x'"),
    ("layout.data_parallel_size=all", "layout.data_parallel_size must be an integer or auto, but is 'all'"),
    ("layout.data_parallel_size=1.5", "layout.data_parallel_size must be an integer or auto, but is 1.5"),
    ("precision.dtype=bf61", "precision.dtype must be one of fp32, bf16, fp16, but is 'bf61'; did you mean 'bf16'?"),
    ("precision.dtype=half", "precision.dtype must be one of fp32, bf16, fp16, but is 'half'; did you mean 'fp16'?"),
    ("zero.offload=null", "zero.offload must be one of none, cpu, nvme, but is null; did you mean 'none'?"),
    ("model=gpt2_124", "there is no model=gpt2_124; did you mean model=gpt2_124m?"),
    ("precision=half", "there is no precision=half; did you mean precision=fp16?"),
    ("precision=null", "there is no precision=null; choose from bf16, fp16, fp32"),
    ("model={hidden_size:3}", "model takes the name of a file in conf/model; set single keys as model.hidden_size=..."),
    ("modle=gpt2_124m", "there is no key 'modle'; did you mean 'model'?"),
    ("model.hiden_size=3", "there is no key 'model.hiden_size'; did you mean 'model.hidden_size'?"),
    ("layuot.tensor_parallel_size=2", "there is no key 'layuot.tensor_parallel_size'; did you mean 'layout.tensor_parallel_size'?"),
    ("lr=1", "there is no key 'lr'; did you mean 'optimizer.lr'?"),
    ("layout.tp=2", "there is no key 'layout.tp'; it is layout.tensor_parallel_size=2 here"),
    ("max_steps=2", "there is no key 'max_steps'; it is train.steps=2 here"),
    ("vocab_size=2", "there is no key 'vocab_size'; did you mean 'model.vocab_size' or 'tokenizer.vocab_size'?"),
    ("zero.foo=1", "there is no key 'zero.foo'; zero has stage, offload, offload_parameters, nvme_path, reduce_bucket_size and overlap_comm"),
    ("data.files.0=x", "there is no key 'data.files.0'; did you mean 'data.files'?"),
    ("+zzz=1", "there is no key 'zzz'; keys start with model, tokenizer, data, layout, zero, precision, batch, optimizer, schedule, train, eval, checkpoint, logging, runtime, launch, cluster or experiment"),
    ("+model.hiden_size=1", "there is no key 'model.hiden_size'; did you mean 'model.hidden_size'?"),
    ("+train.steps=1", "'+train.steps=1' would add a key, but 'train.steps' exists; write train.steps=1"),
    ("++train.steps=1", "'++train.steps=1' would add a key, but 'train.steps' exists; write train.steps=1"),
    ("+experiment=demo", "'+experiment=demo' would add a key, but 'experiment' exists; write experiment=demo"),
    ("~train.steps", "'~train.steps' would remove a key, but every key must have a value; write train.steps=..."),
    ("~model", "'~model' would remove a key, but every key must have a value; write model=..."),
    ("model@x=gpt_debug", "'model@x=gpt_debug' moves a group to another place, but a group has one place; write model=gpt_debug"),
    ("hydra.run.dir=x", "'hydra.run.dir=x' has no effect: Trident uses Hydra only to compose; the run's folder is run_dir"),
    ("optimizer.lr=1,2", "optimizer.lr must be one value, but '1,2' gives several; add --multirun for one run each"),
    ("model=gpt_debug,gpt2_124m", "model must be one value, but 'gpt_debug,gpt2_124m' gives several; add --multirun for one run each"),
    ("optimizer.lr=range(1,3)", "optimizer.lr must be one value, but 'range(1,3)' gives several; add --multirun for one run each"),
    ("config=runs/a,b", "config must be one value, but 'runs/a,b' gives several; add --multirun for one run each, or quote what is one: \"config='runs/a,b'\""),
    ("run_dir=runs/it's a,b", "run_dir must be one value, but 'runs/it's a,b' gives several; add --multirun for one run each, or quote what is one: \"run_dir=\\\"runs/it's a,b\\\"\""),
    ("data.files=a,b", "data.files must be one list, but 'a,b' gives several values; write data.files=[a,b]"),
    ("--deepspeed", "there is no option '--deepspeed'; there is nothing of the kind: the DeepSpeed config is made from zero.*, precision.*, batch.* and optimizer.*"),
    ("train.steps", "'train.steps' must be written key=value, for example train.steps=10; did you mean 'train.steps=...'?"),
    ("name=[a", """'name=[a' cannot be read as key=value: '[' is not closed; write "name='[a'\""""),
]  # fmt: skip


@pytest.mark.parametrize(("override", "message"), BAD)
def test_bad_override(override: str, message: str) -> None:
    assert problems_of(override) == (message,)


def test_all_bad_overrides_are_reported_at_once() -> None:
    overrides, messages = zip(*BAD, strict=True)
    assert sorted(problems_of(*overrides)) == sorted(messages)


def test_numbers_too_large_for_python_are_refused() -> None:
    assert len(problems_of(f"train.steps={'9' * 5000}")) == 1
    assert len(problems_of(f"optimizer.lr={'9' * 400}")) == 1


WORDS = st.sampled_from([*KEYS, *GROUPS, "experiment", "hydra", "hydra.run.dir", "foo", ""])
VALUES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["null", "1", "-1", "1e-4", "[a,b]", "{a:1}", "${name}", "${", "${oc.env:X}", "${model}", "true", "'", "demo"]),
    st.sampled_from([name for names in options().values() for name in names]),
)  # fmt: skip
OVERRIDES = st.one_of(
    st.text(max_size=20),
    st.builds(
        lambda sign, key, value: f"{sign}{key}={value}", st.sampled_from(["", "", "", "+", "++", "~"]), WORDS, VALUES
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(OVERRIDES, max_size=4))
def test_whatever_is_typed_gives_a_config_or_a_config_error(overrides: list[str]) -> None:
    problems: tuple[str, ...] = ()
    config = None
    try:
        config = compose(overrides)
    except ConfigError as error:
        problems = error.problems
    assert (config is None) == bool(problems)
    assert all("\n" not in problem for problem in problems)
    assert config is None or from_yaml(to_yaml(config)) == config


def test_yaml_is_deterministic_plain_and_complete() -> None:
    config = compose(["experiment=demo"])
    text = to_yaml(config)
    assert text == to_yaml(from_yaml(text))
    assert "!!" not in text
    assert "dtype: fp32\n" in text
    assert "pipeline_schedule: 1f1b\n" in text
    for key in KEYS:
        assert f"{key.rpartition('.')[2]}:" in text


@pytest.mark.parametrize("name", ["\x85", "a\u2028b", "\u2029", "é"])
def test_line_ends_of_unicode_survive_yaml(name: str) -> None:
    config = replace(TridentConfig(), name=name)
    assert from_yaml(to_yaml(config)) == config


@settings(max_examples=100, deadline=None)
@given(
    name=st.text(min_size=1, max_size=30),
    lr=st.floats(min_value=1e-300, max_value=1e300),
    files=st.lists(st.text(max_size=10), max_size=3),
    steps=st.integers(),
)
def test_yaml_round_trip_is_exact(name: str, lr: float, files: list[str], steps: int) -> None:
    base = TridentConfig()
    config = dataclasses.replace(
        base,
        name=name,
        optimizer=OptimizerConfig(lr=lr),
        data=dataclasses.replace(base.data, files=tuple(files)),
        train=dataclasses.replace(base.train, steps=steps),
    )
    assert from_yaml(to_yaml(config)) == config


def test_yaml_that_leaves_keys_out_takes_defaults() -> None:
    assert from_yaml("") == TridentConfig()
    assert from_yaml("name: x\n").name == "x"


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("a: [", ("the config must be YAML, but while parsing a flow node expected the node content, but found '<stream end>' in \"<unicode string>\", line 1, column 5: a: [ ^",)),
        ("- a", ("the config must be YAML with one key per group, but is a list",)),
        ("model: 3", ("'model' is a group of keys and takes no value itself; set for example model.name",)),
        ("zero:\n  stage: x\n  foo: 1\n", ("zero.stage must be an integer, but is 'x'", "there is no key 'zero.foo'; zero has")),
        ("optimiser:\n  lr: 1\n", ("there is no key 'optimiser'; did you mean 'optimizer'?",)),
    ],
)  # fmt: skip
def test_bad_yaml(text: str, problems: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_yaml(text)
    assert len(caught.value.problems) == len(problems)
    for found, expected in zip(caught.value.problems, problems, strict=True):
        assert found.startswith(expected)


def test_differences_name_the_keys() -> None:
    a, b = compose(["name=x"]), compose(["name=x", "zero.stage=0", "data.files=[a]"])
    assert differences(a, a) == []
    assert differences(a, b) == ["data.files", "zero.stage"]


def test_options_lists_every_group() -> None:
    assert options()["precision"] == ["bf16", "fp16", "fp32"]
    assert {"demo", "overfit"} <= set(options()["experiment"])
    assert list(options()) == [*GROUPS, "experiment"]


def test_conf_is_found_beside_and_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "trainer"
    inside, beside = package / "conf", tmp_path / "conf"
    for folder in (inside, beside):
        folder.mkdir(parents=True)
    monkeypatch.setattr(trainer, "__file__", str(package / "__init__.py"))
    with pytest.raises(ConfigError, match=r"conf/train\.yaml must be installed with trident"):
        conf_folder()
    (beside / "train.yaml").touch()
    assert conf_folder() == beside
    (inside / "train.yaml").touch()
    assert conf_folder() == inside


def test_a_broken_shipped_file_is_a_config_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.yaml").write_text("defaults:\n  - trident_schema\n  - _self_\nnmae: x\n")
    monkeypatch.setattr(searched, "conf_folder", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    assert problems_of() == ("train.yaml:4: there is no key 'nmae'; did you mean 'model.name' or 'name'?",)


def test_composing_imports_neither_torch_nor_deepspeed() -> None:
    program = (
        "import sys\n"
        "from trainer.config.compose import compose, options, to_yaml\n"
        "from trainer.config.validate import validate\n"
        "from trainer.config.plan import make_plan\n"
        "from trainer.config.ds_json import deepspeed_json\n"
        "options()\n"
        "assert 'hydra' not in sys.modules, 'help must not wait for hydra'\n"
        "config = compose(['experiment=demo'])\n"
        "to_yaml(config)\n"
        "validate(config)\n"
        "deepspeed_json(make_plan(config, 2048))\n"
        "heavy = {'torch', 'deepspeed', 'transformers', 'datasets', 'wandb', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
