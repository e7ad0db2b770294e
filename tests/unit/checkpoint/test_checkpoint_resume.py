"""Which checkpoint a run goes on from, and what it takes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from tests.helpers.shards import unread
from tests.unit.checkpoint.checkpoint_fixtures import FULL, KINDS, TENSOR_FILE, FakeEngine, Run, config_of, plan_of
from trainer.checkpoint.manifest import MANIFEST, read_manifest
from trainer.checkpoint.origin import Found, Use
from trainer.checkpoint.resume import checkpoint_to_resume, load, starting_state
from trainer.checkpoint.store import CheckpointStore
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import (
    ActivationKind,
    Dtype,
    LayoutConfig,
    ModelConfig,
    NormKind,
    OnChange,
    PositionKind,
    PrecisionConfig,
    RecomputeKind,
    TridentConfig,
    ZeroConfig,
)
from trainer.data.stream_plan import Phase, Segment, SourceShare, StreamPlan
from trainer.data.streams import WantedStream
from trainer.errors import CheckpointError, DataError, StorageError
from trainer.loop.state import TrainState
from trainer.run_paths import CONFIG
from trainer.topology.groups import FakeGroup, Group, single_process_groups


def flip(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def found_in(store: CheckpointStore, control: Group, wanted: object = "auto") -> Found | None:
    return checkpoint_to_resume(config_of(resume=str(wanted)), store, control)


def needed(found: Found | None) -> Found:
    assert found is not None
    return found


def loaded(found: Found | None, control: Group, plan: RunPlan | None = None) -> tuple[FakeEngine, TrainState]:
    engine, plan = FakeEngine(), plan or plan_of()
    state = starting_state(found, plan, "")
    if found is not None:
        load(found, engine, plan, single_process_groups())
    return engine, state


def test_the_newest_is_taken_and_loaded(run: Run, control: Group, capsys: pytest.CaptureFixture[str]) -> None:
    run.steps(4)
    found = found_in(run.store, control)
    assert found is not None
    engine, state = loaded(found, control)
    assert state == TrainState(step=4, position=48, tokens_seen=40, sample_length=8)
    assert all(torch.equal(engine.loaded[kind], run.engine.values(kind)) for kind in KINDS)
    assert engine.loaded_scalars == found[1].scalars
    told = capsys.readouterr()
    assert f"resumed from {run.store.path(4)} (step 4)\n" in told.out
    assert "changed" not in told.out
    assert told.err == ""


def test_there_may_be_none_and_then_the_run_begins(run: Run, control: Group) -> None:
    assert found_in(run.store, control) is None
    engine, state = loaded(None, control)
    assert state == TrainState(sample_length=plan_of().execution.seq_length)
    assert engine.loaded == {}


@pytest.mark.parametrize("word", ["auto", "never", "nowhere", "elsewhere"])
def test_the_runs_own_newest_wins_over_what_it_began_from(run: Run, control: Group, tmp_path: Path, word: str) -> None:
    """Whether a command with that word may go on here is asked before; from here on there is one answer."""
    run.steps(4)
    other = Run(tmp_path / "elsewhere", control)
    other.steps(10)
    found = needed(found_in(run.store, control, tmp_path / word if word.endswith("where") else word))
    assert (found.path, found.use) == (run.store.path(4), Use.own)


def test_damaged_ones_are_skipped_with_a_warning_each(
    run: Run, control: Group, capsys: pytest.CaptureFixture[str]
) -> None:
    run.steps(10)
    flip(run.store.path(10) / TENSOR_FILE)
    (run.store.path(8) / MANIFEST).unlink()
    (run.store.path(6) / CONFIG).unlink()
    capsys.readouterr()
    found = found_in(run.store, control)
    assert found is not None
    assert found == Found(run.store.path(4), read_manifest(run.store.path(4)), Use.own)
    warnings = capsys.readouterr().err.splitlines()
    assert [line.startswith("warning: skipping a damaged checkpoint: ") for line in warnings] == [True] * 3
    for line, (step, word) in zip(warnings, [(10, TENSOR_FILE), (8, MANIFEST), (6, CONFIG)], strict=True):
        assert f"step_{step}" in line
        assert word in line
    engine, state = loaded(found, control)
    assert torch.equal(engine.loaded["weight"], FULL + 2)
    assert state.step == 4


def test_all_damaged_is_an_error_and_no_new_beginning(run: Run, control: Group) -> None:
    run.steps(4)
    for step in (2, 4):
        flip(run.store.path(step) / TENSOR_FILE)
    with pytest.raises(CheckpointError, match="must hold a whole checkpoint to go on from, but all of its 2") as caught:
        found_in(run.store, control)
    assert caught.value.exit_code == 4
    assert "run_dir" in caught.value.hints[0]
    assert run.store.steps() == [2, 4]


@pytest.mark.parametrize("below", ["checkpoint", "run"])
def test_a_named_one_that_is_damaged_is_an_error_and_no_other_is_taken(
    run: Run, control: Group, tmp_path: Path, below: str
) -> None:
    run.steps(4)
    path = run.store.path(4) if below == "checkpoint" else tmp_path
    fork = CheckpointStore(tmp_path / "fork")
    assert needed(found_in(fork, control, path)).manifest.step == 4
    flip(run.store.path(4) / TENSOR_FILE)
    with pytest.raises(CheckpointError, match=r"step_4/tensors/rank_00000\.safetensors must be as it was saved"):
        found_in(fork, control, path)


def test_a_fork_whose_own_checkpoints_are_damaged_does_not_begin_anew(run: Run, control: Group, tmp_path: Path) -> None:
    run.steps(4)
    fork = Run(tmp_path / "fork", control)
    fork.steps(2)
    flip(fork.store.path(2) / TENSOR_FILE)
    with pytest.raises(CheckpointError, match="must hold a whole checkpoint to go on from"):
        found_in(fork.store, control, tmp_path)


def test_a_run_without_checkpoints_begins_where_it_is_told(run: Run, control: Group, tmp_path: Path) -> None:
    run.steps(4)
    fork = CheckpointStore(tmp_path / "fork")
    for path, step in ((run.store.path(2), 2), (tmp_path, 4), (run.store.folder / "latest", 4)):
        found = needed(found_in(fork, control, path))
        assert (found.manifest.step, found.use) == (step, Use.resumed)
    with pytest.raises(CheckpointError, match="does not exist"):
        found_in(fork, control, tmp_path / "nothing")


def test_weights_alone_begin_at_the_first_step_with_fresh_moments_and_counters(
    run: Run, control: Group, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.steps(4)
    config = config_of(init_from=str(tmp_path))
    plan = replace(plan_of(), config=config)
    found = needed(checkpoint_to_resume(config, CheckpointStore(tmp_path / "new"), control))
    assert (found.manifest.step, found.use) == (4, Use.weights)
    engine = FakeEngine()
    engine.saves = 7
    state = starting_state(found, plan, "a stream of its own")
    load(found, engine, plan, single_process_groups())
    assert state == TrainState(sample_length=plan.execution.seq_length, stream="a stream of its own")
    assert torch.equal(engine.loaded["weight"], run.engine.values("weight"))
    assert not engine.loaded["exp_avg"].any()
    assert not engine.loaded["exp_avg_sq"].any()
    assert engine.loaded["exp_avg"].shape == engine.loaded["weight"].shape
    assert set(engine.loaded_scalars.values()) == {0.0}
    assert f"began with the weights of {run.store.path(4)} (its step 4)" in capsys.readouterr().out


def test_a_change_of_layout_is_told(run: Run, control: Group, capsys: pytest.CaptureFixture[str]) -> None:
    run.steps(2)
    layout = LayoutConfig(tensor_parallel_size=2, data_parallel_size=4)
    config = TridentConfig(
        ModelConfig(seq_length=16), layout=layout, zero=ZeroConfig(3), precision=PrecisionConfig(Dtype.bf16)
    )
    capsys.readouterr()
    loaded(found_in(run.store, control), control, make_plan(config, 100))
    changes = "tensor_parallel_size 1 -> 2, data_parallel_size 1 -> 4, zero_stage 0 -> 3, dtype fp32 -> bf16"
    assert f"(step 2); changed: {changes}\n" in capsys.readouterr().out


def test_a_rank_gets_its_own_shard(run: Run, control: Group) -> None:
    run.steps(2)
    for rank in range(4):
        engine = FakeEngine()
        groups = replace(single_process_groups(), tensor=FakeGroup(rank, 4))
        load(needed(found_in(run.store, control)), engine, plan_of(), groups)
        assert torch.equal(engine.loaded["weight"], (FULL + 1)[2 * rank : 2 * rank + 2])


def test_another_vocabulary_is_refused(run: Run, control: Group) -> None:
    run.steps(2)
    # Padding would hide it.
    assert plan_of().execution.padded(97) == plan_of().execution.padded(100)
    with pytest.raises(CheckpointError, match=r"\(97\), but has 100; set model\.vocab_size=100"):
        loaded(found_in(run.store, control), control, plan_of(vocab_size=97))


SAME = ModelConfig(seq_length=16)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (replace(SAME, num_layers=3), "model.num_layers=4 (here 3)"),
        (replace(SAME, hidden_size=32), "model.hidden_size=64, model.head_dim=16, model.ffn_hidden_size=256 (here 32"),
        # Each of these would fit in shape.
        (replace(SAME, num_attention_heads=8), "model.num_attention_heads=4, model.num_key_value_heads=4"),
        (replace(SAME, norm=NormKind.rmsnorm), "model.norm=layernorm (here rmsnorm)"),
        (replace(SAME, activation=ActivationKind.relu), "model.activation=gelu_tanh (here relu)"),
        (replace(SAME, position=PositionKind.rope), "model.position=learned (here rope)"),
        (replace(SAME, tied_embeddings=False), "model.tied_embeddings=true (here false)"),
        (replace(SAME, bias=False), "model.bias=true (here false)"),
        (replace(SAME, norm_eps=1e-6), "model.norm_eps=1e-05 (here 1e-06)"),
        (replace(SAME, sliding_window=4), "model.sliding_window=null (here 4)"),
    ],
)
def test_another_model_is_refused_before_anything_is_loaded(
    run: Run, control: Group, model: ModelConfig, words: str
) -> None:
    run.steps(2)
    with pytest.raises(CheckpointError) as caught:
        loaded(found_in(run.store, control), control, make_plan(TridentConfig(model), 100))
    assert words in str(caught.value)
    assert "give model.* the values of the run that saved it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_does_not_change_the_weights_may_change(run: Run, control: Group) -> None:
    run.steps(2)
    model = replace(
        SAME,
        name="other",
        dropout=0.1,
        attention_dropout=0.1,
        init_std=0.5,
        rope_theta=5.0,
        fused_loss=False,
        recompute=RecomputeKind.full,
        vocab_pad_multiple=64,
        head_dim=16,
    )
    _, state = loaded(found_in(run.store, control), control, make_plan(TridentConfig(model), 100))
    assert state.step == 2


def test_rotary_options_are_of_the_model_where_it_has_them(tmp_path: Path, control: Group) -> None:
    rope = replace(SAME, position=PositionKind.rope)
    config = replace(plan_of().config, model=rope)
    run = Run(tmp_path, control, make_plan(replace(config, checkpoint=replace(config.checkpoint, every=2)), 100))
    run.steps(2)
    with pytest.raises(CheckpointError, match=r"model\.rope_theta=10000\.0 \(here 500000\.0\)"):
        loaded(found_in(run.store, control), control, make_plan(TridentConfig(replace(rope, rope_theta=5e5)), 100))


def unreadable(path: Path) -> None:
    path.write_bytes(b"\xff")


@pytest.mark.parametrize("damage", [unreadable, lambda path: path.write_text("model: [1"), Path.unlink])
def test_a_config_that_cannot_be_read_is_named(run: Run, control: Group, damage: Callable[[Path], object]) -> None:
    run.steps(2)
    found = found_in(run.store, control)
    damage(run.store.path(2) / CONFIG)
    with pytest.raises(CheckpointError, match=r"config\.yaml must be a config that this version can read"):
        loaded(found, control)


def test_damage_between_the_check_and_the_loading(run: Run, control: Group) -> None:
    run.steps(2)
    found = found_in(run.store, control)
    assert found is not None
    broken = found._replace(manifest=replace(found.manifest, train_state={"sample_length": 8, "step": "x"}))
    with pytest.raises(CheckpointError, match="step must be a whole number"):
        loaded(broken, control)
    (run.store.path(2) / TENSOR_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"rank_00000\.safetensors must hold fragments, but cannot be read"):
        loaded(found, control)


def test_what_the_engine_says_is_said(run: Run, control: Group) -> None:
    run.steps(2)
    engine = FakeEngine()
    engine.fails = StorageError("no room")
    with pytest.raises(StorageError, match="no room"):
        load(needed(found_in(run.store, control)), engine, plan_of(), single_process_groups())


def test_other_data_in_the_same_run_are_refused(run: Run, control: Group) -> None:
    run.steps(2)
    found = found_in(run.store, control)
    with pytest.raises(DataError, match="must give the tokens that this run began with") as caught:
        starting_state(found, plan_of(), "other")
    assert caught.value.hints[1] == "to go on with these data from here on set data.on_change=continue"
    assert f"checkpoint.resume={run.store.path(2)}" in caught.value.hints[2]


class Asked(WantedStream):
    """A stream of one source of 10 samples of 8 tokens, with 4 appended."""

    def begun(self, sample_length: int) -> StreamPlan:
        return StreamPlan(sample_length, (Segment(0, 1, (SourceShare("data", "new", 14),), (Phase(0, (1,)),)),))

    def continues(self, before: SourceShare, after: SourceShare) -> bool:
        return (before.content, after.content) == ("old", "new")


@pytest.mark.parametrize("is_own", [True, False])
def test_other_data_are_gone_on_with_where_the_word_says_so(
    run: Run, control: Group, is_own: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run.state.segments = [
        asdict(Segment(0, 1, (SourceShare("data", "old", 10),), (Phase(0, (1,)),))),
    ]
    run.steps(2)
    config = config_of() if is_own else config_of(resume=str(run.store.path(2)))
    config = replace(config, data=replace(config.data, on_change=OnChange.go_on))
    store = run.store if is_own else CheckpointStore(run.store.folder / "fork")
    found = found_in(store, control, "auto" if is_own else run.store.path(2))
    wanted = Asked(unread(run.store.folder), config)
    state = starting_state(found, make_plan(config, 10), "other", wanted)
    # 24 tokens are three whole samples of 8, so that none is cut.
    length = state.sample_length
    place = -(-24 // length)
    assert (state.position, state.stream) == (place * length, "other")
    after = StreamPlan.from_list(length, state.segments)
    assert [one.first for one in after.segments] == [0, place]
    assert after.segments[1].sources[0] == SourceShare("data", "new", 14, 14 - place, 10 - place, "data")
    said = capsys.readouterr().out
    assert f"step 3 reads other data, from sample {place} of the stream on" in " ".join(said.split())
    refusing = Asked(wanted.prepared, replace(config, data=replace(config.data, on_change=OnChange.error)))
    if is_own:
        with pytest.raises(DataError):
            starting_state(found, make_plan(config, 10), "other", refusing)
    else:
        anew = starting_state(found, make_plan(config, 10), "other", refusing)
        assert (anew.position, len(anew.segments)) == (0, 1)


def test_a_checkpoint_that_does_not_say_what_was_read_is_refused(run: Run, control: Group) -> None:
    run.steps(2)
    config = replace(config_of(), data=replace(config_of().data, on_change=OnChange.go_on))
    wanted = Asked(unread(run.store.folder), config)
    with pytest.raises(CheckpointError, match=r"needs a checkpoint that says what was read so far, but .*step_2"):
        starting_state(found_in(run.store, control), make_plan(config, 10), "other", wanted)


def test_a_named_checkpoint_goes_on_with_other_data_from_their_beginning(run: Run, control: Group) -> None:
    run.steps(2)
    found = found_in(CheckpointStore(run.store.folder / "fork"), control, run.store.path(2))
    plan = make_plan(config_of(resume=str(run.store.path(2))), 10)
    state = starting_state(found, plan, "other")
    assert (state.step, state.tokens_seen, state.position) == (2, 20, 0)
    assert (state.stream, state.sample_length) == ("other", plan.execution.seq_length)
    assert starting_state(found, plan, "").position == 24
