from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml

from tests.helpers.foreign_files import DEEPSPEED, GPT3_SCRIPT, NANOTRON, NEOX_20B, NEOX_125M, neox_text
from tests.unit.migration.conftest import Described, Migrate, lost
from trainer.config.compose import compose
from trainer.errors import ConfigError
from trainer.hardware import look_here
from trainer.migration.draft import Why
from trainer.migration.foreign import Trainer
from trainer.migration.migrating import Asked, migrate, migrate_verb
from trainer.migration.migration_report import report
from trainer.migration.shape import Shape
from trainer.planning import Asked as Asks
from trainer.planning import plan_verb
from trainer.verbs.migrate import VERB
from trainer.verbs.parse import parse

SIZES = "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 128"
_BOMB = "hidden_size: 1\nk0: &k0 [1]\n" + "".join(
    f"k{index}: &k{index} [{', '.join([f'*k{index - 1}'] * 9)}]\n" for index in range(1, 9)
)
"""Few characters, 9 to the power of 8 values."""
BATCH = "--micro-batch-size 2 --global-batch-size 16 --train-iters 100 --lr 1e-3 --vocab-size 1000"


def test_the_experiment_is_found_where_it_is_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "20B.yml").write_text(neox_text(NEOX_20B))
    assert VERB.run(parse(VERB, ["20B.yml", "layout.data_parallel_size=12", "name=mine"])) == 0
    out = capsys.readouterr().out
    assert "conf/experiment/mine.yaml: " in out
    assert "parameters without vocabulary: 19,934,859,264 there, 19,934,859,264 here: equal" in out
    assert "tokens a step: 3,145,728 there, 3,145,728 here: equal" in out
    assert out.endswith("next: trident plan experiment=mine\n")
    config = compose(["experiment=mine"])
    assert (config.name, config.layout.data_parallel_size) == ("mine", 12)
    assert config.model.hidden_size == 6144


def test_each_key_says_where_it_comes_from(migrated: Migrate) -> None:
    text = migrated(gpt3__sh=GPT3_SCRIPT).text
    assert "  num_layers: 96  # --num-layers\n" in text
    assert "    vocab_size: 50257" not in text
    assert "  norm_eps: 1.0e-05  # default there\n" in text
    assert "# no effect here: --load=$1: a run goes on from its own newest checkpoint by itself" in text
    assert max(map(len, text.splitlines())) < 1200
    assert yaml.safe_load(text)["model"]["hidden_size"] == 12288


def test_an_experiment_is_not_replaced_without_a_word(here: Path) -> None:
    (here / "n.yaml").write_text(json.dumps(NANOTRON))
    assert migrate_verb(Asked(["n.yaml"])) == 0
    with pytest.raises(ConfigError, match=r"conf/experiment/n.yaml must not be there yet, but is; use --force"):
        migrate_verb(Asked(["n.yaml"]))
    assert migrate_verb(Asked(["n.yaml"], ["train.steps=7", "schedule.decay_steps=7"], overwrites=True)) == 0
    assert compose(["experiment=n"]).train.steps == 7


def test_what_breaks_a_rule_is_not_written(here: Path) -> None:
    (here / "m.yml").write_text(neox_text({**NEOX_125M, "zero_optimization": {"stage": 2}, "pipe_parallel_size": 2}))
    with pytest.raises(ConfigError, match=r"zero\.stage") as caught:
        migrate_verb(Asked(["m.yml"]))
    assert caught.value.hints == ("a KEY=VALUE behind FILE settles it; nothing was written",)
    assert not (here / "conf").exists()
    assert migrate_verb(Asked(["m.yml"], ["zero.stage=1"])) == 0


def test_numbers_that_differ_are_a_fault_of_ours(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "m.yml").write_text(neox_text(NEOX_125M))
    monkeypatch.setattr("trainer.migration.gpt_neox_model.Shape", _LargerShape)
    assert migrate_verb(Asked(["m.yml"])) == 1
    out, err = capsys.readouterr()
    assert "parameters without vocabulary: 85,056,001 there, 85,056,000 here: DIFFERENT" in out
    assert "parameters without vocabulary differ: 85,056,001 there, 85,056,000 here; please report this" in err


class _LargerShape(Shape):
    """A model that is counted wrongly."""

    @property
    def without_vocabulary(self) -> int:
        return super().without_vocabulary + 1


def test_numbers_that_the_user_changes_are_no_fault(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "m.yml").write_text(neox_text({**NEOX_125M, "train_batch_size": 256}))
    assert migrate_verb(Asked(["m.yml"], ["model.num_layers=6", "batch.global_batch_size=64"])) == 0
    out = capsys.readouterr().out
    assert "parameters without vocabulary: 85,056,000 there, 42,528,768 here: changed by model.num_layers" in out
    assert "tokens a step: 524,288 there, 131,072 here: changed by batch.global_batch_size" in out


def test_groups_behind_files_are_refused(here: Path) -> None:
    (here / "m.yml").write_text(neox_text(NEOX_125M))
    with pytest.raises(ConfigError, match=r"'layout' is a group; behind FILE only keys can be set"):
        migrate(Asked(["m.yml"], ["layout=tp2"]))
    with pytest.raises(ConfigError, match=r"there is no key 'train.step'"):
        migrate(Asked(["m.yml"], ["train.step=2"]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yml", "", "a.yml must be a config or a script, but is empty"),
        ("a.yml", "- 1\n- 2\n", "a.yml:1 must hold `key: value`, but holds a list"),
        ("a.yml", "a: [1\n", "a.yml:2 must be YAML"),
        ("a.yml", "a: 1\na: 2\n", "must have every key once, but has 'a' again"),
        ("a.json", '{"train_batch_size": 1, "train_batch_size": 2}', "must have every key once"),
        ("a.yml", "x: 1\ny: 2\n", "must be a config of gpt-neox, nanotron or DeepSpeed, but its keys (x, y)"),
        ("a.yml", "model:\n  hidden_size: 4\n", "but is a config of Trident already"),
        ("a.json", '{"architectures": ["LlamaForCausalLM"]}', "but is a Hugging Face config of a model"),
        ("a.sh", "echo hello\n", "a.sh must hold a command that trains a GPT, with --num-layers and --hidden-size"),
        ("a.sh", f"a.py {SIZES}\nb.py {SIZES} --bf16\n", "must train once, but has several commands that train (lines"),
        ("a.txt", "hello world\n", "a.txt:1 must hold `key: value`, but holds one value"),
        ("a.yml", b"\xff\xfe\x00", "must be UTF-8 text, but holds the byte 0xff"),
        ("a.yml", b"a: \x00\x00", "must be YAML"),
        ("a.yml", neox_text({"hidden_size": 64, "num_layers": 2}), "the files must say num_attention_heads"),
        ("a.yml", neox_text({**NEOX_125M, "hidden_size": "wide"}), "hidden_size must be a number, but is wide"),
        ("a.yml", neox_text({**NEOX_125M, "num_layers": 1.5}), "num_layers must be an integer, but is 1.5"),
        ("a.yml", neox_text({**NEOX_125M, "num_attention_heads": 7}), "the width (768) must be divisible by the heads"),
        ("a.yml", neox_text({**NEOX_125M, "num_attention_heads": 0}), "heads must be at least 1, but is 0"),
        ("a.yml", neox_text({**NEOX_125M, "rotary_pct": 1.5}), "rotary_pct must be greater than 0 and at most 1"),
        ("a.yml", neox_text({**NEOX_125M, "no_weight_tying": "maybe"}), "no_weight_tying must be true or false"),
        ("a.yml", neox_text({**NEOX_125M, "split": "a,b"}), "split must be shares such as 969,30,1, but is a,b"),
        ("a.yml", neox_text({**NEOX_125M, "attention_config": [3]}), "attention_config must be [[[KIND, ...], TIMES]"),
        ("a.yml", neox_text({**NEOX_125M, "train_iters": ".inf"}).replace('".inf"', ".inf"), "a number, but is inf"),
        ("a.yml", neox_text({**NEOX_125M, "train_data_paths": ["a", "b"], "train_data_weights": [1]}),
         "must have a weight for each of train_data_paths (2), but has 1"),
        ("a.yml", neox_text({**NEOX_125M, "train_micro_batch_size_per_gpu": -4}), "must be at least 1, but is -4"),
        ("a.txt", f"{SIZES} {BATCH} --rampup-batch-size 4 4", "must be start, increment and samples, but is [4, 4]"),
        ("a.txt", f"{SIZES} {BATCH} --rampup-batch-size 4 5 100", "must grow from its start (4) by its increment (5)"),
        ("a.txt", f"{SIZES} {BATCH} --rampup-batch-size a b c", "--rampup-batch-size must be a number, but is a"),
        ("a.txt", f"{SIZES} {BATCH} --step-batch-size-schedule 0:x 1K:16", "must be TOKENS:SIZE each, but has '0:x'"),
        ("a.txt", f"{SIZES} {BATCH} --step-batch-size-schedule 5:4 1K:16", "must begin at 0 tokens and end with the"),
        ("a.txt", f"{SIZES} {BATCH} --normalization Batch", "must be LayerNorm or RMSNorm, but is batch"),
        ("a.txt", f"{SIZES} {BATCH} --lr fast", "--lr must be a number, but is fast"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used_are_told(name: str, content: str | bytes, message: str, here: Path) -> None:
    (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        migrate(Asked([name]))
    assert message in str(caught.value)
    assert len(caught.value.hints) <= 3
    assert list(here.iterdir()) == [here / name]


def test_places_that_cannot_be_read_or_written_are_told(here: Path) -> None:
    (here / "n.yaml").write_text(json.dumps(NANOTRON))
    (here / "folder").mkdir()
    for files, output, message in (
        ([], None, "trident migrate needs a FILE of another trainer, but none is given"),
        (["nothing.yml"], None, "nothing.yml must be a file that can be read, but: No such file or directory"),
        (["folder"], None, "FILE must be a file, but folder is a folder"),
        (["n.yaml"], "folder", "-o must name a file, such as mine.yaml, but folder is a folder"),
        (["n.yaml"], "new/", "-o must name a file, such as mine.yaml, but new/ is a folder"),
        (["n.yaml"], "mine.txt", "-o must name a file that ends in .yaml, but is mine.txt"),
    ):
        with pytest.raises(ConfigError) as caught:
            migrate(Asked(files, output=output))
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("hidden_size: &a\n  b: *a\n", "must be nested at most 50 deep, but is deeper"),
        (_BOMB, "must hold at most 100,000 values, but holds more"),
        ("hidden_size: " + "9" * 400, "hidden_size must be a number"),
        ("hidden_size: " + "9" * 30, "hidden_size must be an integer, but is 9999"),
        ("hidden_size: .nan", "hidden_size must be a number, but is nan"),
        ("hidden_size: 2020-01-01", "hidden_size must be a number, but is"),
        ("hidden_size: -64", "hidden_size must be at least 1, but is -64"),
    ],
)  # fmt: skip
def test_values_of_any_size_and_form_are_told(content: str, message: str, here: Path) -> None:
    (here / "a.yml").write_text(f"num_layers: 2\nnum_attention_heads: 2\nseq_length: 8\n{content}\n")
    with pytest.raises(ConfigError) as caught:
        migrate(Asked(["a.yml"]))
    assert message in str(caught.value)


def test_settings_for_one_thing_that_disagree_are_told(described: Described) -> None:
    done = described(m__yml=neox_text({**NEOX_125M, "clip_grad": 0.5, "gas": 2, "gradient_accumulation_steps": 4}))
    found = {one.written: one.reason for one in done.draft.dropped if one.why is Why.by_hand}
    assert found["clip_grad"] == "gradient_clipping says 1.0"
    assert found["gas"] == "gradient_accumulation_steps says 4"
    assert done.config.batch.global_batch_size == 16


def test_a_length_that_the_files_do_not_say_is_told(described: Described) -> None:
    values = {key: value for key, value in NEOX_125M.items() if key not in ("train_iters", "lr_decay_iters")}
    done = described(m__yml=neox_text(values))
    assert done.draft.entries["train.steps"].note.endswith("give train.steps=N behind them")


def test_a_place_that_cannot_be_written_is_told(here: Path) -> None:
    (here / "n.yaml").write_text(json.dumps(NANOTRON))
    with pytest.raises(ConfigError, match=r"-o must name a file that can be written, but n.yaml.x.yaml: File exists"):
        migrate_verb(Asked(["n.yaml"], output="n.yaml/x.yaml", overwrites=True))


def test_a_trainer_that_is_said_wrongly_is_told(here: Path) -> None:
    (here / "a.sh").write_text(f"pretrain_gpt.py {SIZES} {BATCH}")
    with pytest.raises(ConfigError, match=r"a\.sh must be a config of nanotron, as --from says, but is no mapping"):
        migrate(Asked(["a.sh"], trainer=Trainer.nanotron))


def test_a_huge_file_is_refused(here: Path) -> None:
    (here / "a.yml").write_bytes(b"# " + b"x" * (5 << 20))
    with pytest.raises(ConfigError, match="must be a config or a script, but is larger than 4 MiB"):
        migrate(Asked(["a.yml"]))


def test_files_of_two_trainers_are_refused(described: Described) -> None:
    with pytest.raises(ConfigError, match="the files must be of one trainer"):
        described(a__yml=neox_text(NEOX_125M), b__yaml=NANOTRON)


def test_the_trainer_can_be_said(here: Path) -> None:
    (here / "a.yml").write_text(neox_text({"zero_optimization": {"stage": 1}, "train_micro_batch_size_per_gpu": 2}))
    assert migrate(Asked(["a.yml"], trainer=Trainer.deepspeed)).foreign.trainer is Trainer.deepspeed
    with pytest.raises(ConfigError, match="the files must say hidden_size, but do not"):
        migrate(Asked(["a.yml"], trainer=Trainer.gpt_neox))


def test_another_place_and_a_name_that_is_no_word(here: Path) -> None:
    (here / "größe 1.5B (v2).yaml").write_text(json.dumps(NANOTRON))
    assert migrate(Asked(["größe 1.5B (v2).yaml"])).path.name == "gr_e_1_5B_v2.yaml"
    done = migrate(Asked(["größe 1.5B (v2).yaml"], output="sub/mine.yaml"))
    assert done.path == here / "sub" / "mine.yaml"
    assert done.config.name == "mine"


def test_text_that_looks_like_an_interpolation_stays_text(migrated: Migrate) -> None:
    done = migrated(m__yml=neox_text({**NEOX_125M, "data_path": "/data/${oc.env:SECRET}/x", "wandb_project": "- {lab"}))
    assert done.config.data.files == ("/data/${oc.env:SECRET}/x",)
    assert done.config.logging.wandb_project == "- {lab"


def test_a_comment_cannot_break_out_of_its_line(migrated: Migrate) -> None:
    done = migrated(m__yml=neox_text({**NEOX_125M, "some_name": "x\ny: 2", "hostfile": "a\u2028b: 1\x85c"}))
    assert "y" not in yaml.safe_load(done.text)
    assert done.config.model.hidden_size == 768


def test_a_vocabulary_that_is_here_is_counted(here: Path, migrated: Migrate) -> None:
    (here / "vocab.json").write_text(json.dumps({f"t{index}": index for index in range(321)}))
    done = migrated(m__yml=neox_text({**NEOX_125M, "vocab_file": "vocab.json", "merge_file": "merges.txt"}))
    assert done.config.model.vocab_size == 321
    model = {"vocab": {f"t{index}": index for index in range(100)}}
    (here / "my_tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": [{"id": 109, "content": "x"}]}))
    done = migrated(m__yml=neox_text({**NEOX_125M, "vocab_file": "my_tokenizer.json", "tokenizer_type": "HFTokenizer"}))
    assert done.config.model.vocab_size == 110
    assert done.config.tokenizer.path == "my_tokenizer.json"


def test_a_vocabulary_that_nobody_knows_is_asked_for(migrated: Migrate) -> None:
    values = {**NEOX_125M, "vocab_file": "/x/some.json", "tokenizer_type": "HFTokenizer"}
    with pytest.raises(ConfigError, match=r"needs model.vocab_size"):
        migrated(m__yml=neox_text(values))
    assert migrated("model.vocab_size=777", m__yml=neox_text(values)).config.model.vocab_size == 777


def test_settings_are_sorted_by_why_they_have_no_key(described: Described) -> None:
    more = {"hostfile": "/job/hostfile", "label_smoothing": 0.1, "no_such_setting": 3, "fp16_lm_cross_entropy": True}
    more |= {"use_wandb": True, "wandb_team": "lab", "moe_num_experts": 1, "betas": [0.9, 0.95]}
    done = described(m__yml=neox_text({**NEOX_125M, **more}))
    assert "no_such_setting" in lost(done, Why.unknown)
    assert "hostfile" in lost(done, Why.environment)
    assert "label_smoothing" in lost(done, Why.unsupported)
    assert "betas" in lost(done, Why.by_hand)
    assert "moe_num_experts" in lost(done, Why.no_effect)
    assert done.config.logging.wandb.value == "online"
    assert done.config.logging.wandb_entity == "lab"


def test_every_setting_is_told_of_once(described: Described) -> None:
    for files in (
        {"a__yml": neox_text(NEOX_20B)},
        {"a__sh": GPT3_SCRIPT},
        {"a__yaml": NANOTRON},
        {"a__json": DEEPSPEED},
    ):
        done = described(**files)
        lost = [one.written for one in done.draft.dropped]
        kept = {name for entry in done.draft.entries.values() for name in entry.names}
        assert len(lost) == len(set(lost))
        for name, setting in done.draft.settings.items():
            assert name in kept or setting.written in lost


def test_secrets_of_the_environment_are_not_written(
    here: Path, migrated: Migrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "do-not-tell")
    done = migrated(run__sh=f"pretrain_gpt.py {SIZES} {BATCH} --wandb-api-key $MY_KEY --hf-token=$MY_KEY")
    assert "do-not-tell" not in done.text + "".join(report(done))
    assert "--wandb-api-key=(hidden)" in done.text


def test_the_standard_input_is_a_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in (f"{SIZES} {BATCH}", neox_text({**NEOX_125M, "train_batch_size": 64})):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        assert VERB.run(parse(VERB, ["-", "--force", "-o", "mine.yaml"])) == 0
        assert "equal" in capsys.readouterr().out
    assert compose([f"experiment={here}/mine.yaml"]).name == "mine"
    monkeypatch.setattr("sys.stdin", io.StringIO("a: [1"))
    with pytest.raises(ConfigError, match="the standard input:1 must be YAML"):
        migrate(Asked(["-"]))


def test_a_file_whose_name_has_an_equals_sign_is_a_file(here: Path) -> None:
    (here / "train.steps=5.yaml").write_text(json.dumps(NANOTRON))
    assert VERB.run(parse(VERB, ["train.steps=5.yaml", "train.seed=7"])) == 0
    assert compose(["experiment=train_steps_5"]).train.seed == 7


@pytest.mark.parametrize(
    ("name", "text"), [("20b.yml", neox_text(NEOX_20B)), ("n.yaml", json.dumps(NANOTRON)), ("g.sh", GPT3_SCRIPT)]
)
def test_the_experiment_plans(name: str, text: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / name).write_text(text)
    assert migrate_verb(Asked([name], output="mine.yaml")) == 0
    capsys.readouterr()
    assert plan_verb(["experiment=./mine.yaml", "cluster=a100_80gb"], Asks(), look_here({})) == 0
    assert "model    mine: " in capsys.readouterr().out
