from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from trainer.config.compose import compose
from trainer.config.schema import RecomputeKind
from trainer.config.validate import problems
from trainer.hardware import Here
from trainer.planner.profile_file import FoundProfile

SMALL = ("model=gpt2_124m", "precision=bf16", "batch.global_batch_size=64", "data.source=synthetic")
ON = ("cluster=a100_80gb", "cluster.nodes=1")
SIXTEEN_GIB = ("cluster=p100", "precision=fp16")
TOP = {
    *("fits", "peak_memory_gib", "device_memory_gib", "fullest_stage", "stages", "step_time_s", "step_time_parts_s"),
    *("data_parallel_hidden_s", "tokens_per_second", "tflops_per_gpu", "mfu", "hfu", "bubble_fraction", "days"),
    *("gpu_days", "pf_days", "cost_usd", "energy_kwh", "loss", "compute_optimal", "confidence", "constants"),
    *("layout", "cluster", "model", "tokens", "nearest_that_fit", "faster"),
}


@pytest.fixture(autouse=True)
def _no_gpu_and_no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("trainer.planner.predict.find_calibration", lambda device: FoundProfile(None, None))


def plan_json(trident: Run, *words: str) -> dict[str, object]:
    answer = trident("plan", *words, "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert isinstance(found, dict)
    return found


def test_one_screen_says_what_a_run_needs(trident: Run) -> None:
    answer = trident("plan", *SMALL, *ON, "layout=tp2_pp2", "cluster.usd_per_device_hour=2")
    assert answer.code == 0, answer.err
    for part in ("FITS", "stage 1", "matrix multiplications", "tokens/s", "MFU", "$", "loss", "sure "):
        assert part in answer.out
    assert max(map(len, answer.out.splitlines())) <= 140


def test_json_has_every_documented_key_and_sources(trident: Run) -> None:
    found = plan_json(trident, *SMALL, *ON, "layout=tp2_pp2")
    assert set(found) == TOP
    constants = found["constants"]
    assert isinstance(constants, dict)
    assert all(one["source"] and isinstance(one["value"], float | int) for one in constants.values())
    parts = found["step_time_parts_s"]
    assert isinstance(parts, dict)
    assert sum(parts.values()) == pytest.approx(found["step_time_s"])
    # Without a number of replicas the cluster is filled.
    assert isinstance(found["layout"], dict)
    assert found["layout"]["data_parallel_size"] == 2
    assert found["layout"]["overrides"][0] == "layout=tp2_pp2_dp2"


def test_every_key_of_the_json_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "planner.md").read_text()
    assert [key for key in TOP if f"`{key}`" not in text] == []


def test_overrides_of_a_search_can_be_pasted(trident: Run) -> None:
    found = plan_json(trident, *SMALL, *ON, "--search")
    ranked = found["ranked"]
    assert isinstance(ranked, list)
    speeds = [one["tokens_per_second"] for one in ranked]
    assert speeds == sorted(speeds, reverse=True)
    for one in ranked:
        config = compose([*SMALL, *one["overrides"]])
        assert problems(config) == []
        again = plan_json(trident, *SMALL, *ON, *one["overrides"])
        assert again["tokens_per_second"] == pytest.approx(one["tokens_per_second"], rel=0.02)
        assert again["peak_memory_gib"] == one["peak_memory_gib"]
    table = trident("plan", *SMALL, *ON, "--search")
    assert "Pareto front" in table.out


def test_what_a_word_sets_stays_in_a_search(trident: Run) -> None:
    found = plan_json(trident, *SMALL, *ON, "zero.stage=2", "batch.micro_batch_size=2", "--search")
    ranked = found["ranked"]
    assert isinstance(ranked, list)
    assert ranked
    assert {(one["zero_stage"], one["micro_batch_size"]) for one in ranked} == {(2, 2)}


def test_a_layout_that_breaks_rules_is_refused_with_reasons_and_what_works(trident: Run) -> None:
    for verb in ("plan", "train"):
        answer = trident(verb, *SMALL, "layout=tp5_pp20")
        assert answer.code == 2
        assert len(answer.problems) == 3
        assert "(because each tensor-parallel rank computes whole heads" in answer.err
        assert "(because a stage without a block would wait" in answer.err
        assert len(answer.hints) == 3
        for hint in answer.hints:
            words = hint.removeprefix("this works: ").partition(":")[0].split()
            assert problems(compose([*SMALL, *words])) == []


def test_a_run_that_does_not_fit_is_shown_with_what_fits(trident: Run) -> None:
    words = ("model=gpt2_1558m", *SIXTEEN_GIB, "batch.global_batch_size=64", "data.source=synthetic", "layout=dp8")
    found = plan_json(trident, *words)
    assert found["fits"] is False
    near = found["nearest_that_fit"]
    assert isinstance(near, list)
    assert len(near) == 3
    for one in near:
        again = plan_json(trident, *words, *one["overrides"])
        assert again["fits"] is True
    assert "MAY NOT FIT" in trident("plan", *words).out


def sizes_of(trident: Run, *words: str) -> tuple[float, float]:
    """Return the predicted GiB of the fullest device, and their relative error."""
    found = plan_json(trident, *words)
    peak, confidence = found["peak_memory_gib"], found["confidence"]
    assert isinstance(peak, float)
    assert isinstance(confidence, dict)
    return peak, confidence["memory"]


def test_what_needs_more_than_there_is_by_less_than_the_error_may_not_fit(trident: Run) -> None:
    peak, error = sizes_of(trident, *SMALL, *ON, "layout=dp8")
    for share, word in ((1 + error, "FITS "), (1 - error / 2, "MAY NOT FIT "), (1 - 2 * error, "DOES NOT FIT ")):
        words = (*SMALL, *ON, "layout=dp8", f"cluster.memory_gib={share * peak}")
        [line] = [line for line in trident("plan", *words).out.splitlines() if "a device holds" in line]
        assert line.startswith(word)
        assert ("less than the error" in line) is (word == "MAY NOT FIT ")
        # The prediction itself, without its error.
        assert plan_json(trident, *words)["fits"] is (word == "FITS ")


def test_where_no_layout_surely_fits_the_smallest_is_tried_if_it_may(trident: Run) -> None:
    words = (*SMALL, *ON, "zero.offload=none")
    least = plan_json(trident, *words, "--search")["least_memory"]
    assert isinstance(least, dict)
    _, error = sizes_of(trident, *words)
    for share, code in ((1 + error / 2, 0), (1 - error / 2, 0), (1 - 2 * error, 2)):
        answer = trident("plan", *words, "layout=auto", f"cluster.memory_gib={share * least['peak_memory_gib']}")
        assert answer.code == code, answer.err
        if code == 0:
            assert (
                f"it needs least memory, and may fit: none does with room for the error of +-{error:.0%}" in answer.out
            )
            assert " ".join(least["overrides"]) in answer.out
    assert " legal ones none does; least memory: " in answer.problems[0]


def test_a_screen_names_a_model_that_words_changed_and_counts_one_micro_batch(trident: Run) -> None:
    words = ("data.source=synthetic", "model.vocab_size=512", "model.hidden_size=256", "layout=dp2")
    batch = ("batch.global_batch_size=4", "batch.micro_batch_size=2")
    for verb, more in (("plan", ON), ("train", ("--dry-run", "runtime.device=cpu"))):
        answer = trident(verb, *words, *batch, *more)
        assert answer.code == 0, answer.err
        assert "gpt_debug, changed: 3" in answer.out
        assert " 1 micro-batch of 2 a rank" in " ".join(answer.out.split())


def test_training_refuses_what_cannot_fit(trident: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.planner.foresee.look_here", lambda environ: Here(cores=2, memory_bytes=1 << 30))
    words = ("model=gpt2_355m", "data.source=synthetic", "model.seq_length=256")
    answer = trident("train", *words, "--dry-run")
    assert answer.code == 2
    assert "must fit into the 1.00 GiB of a device" in answer.problems[0]
    assert "cluster.memory_gib" in answer.problems[0]


def test_the_found_layout_is_always_the_same_and_written(trident: Run) -> None:
    words = (*SMALL, *ON, "layout=auto")
    first, second = (plan_json(trident, *words) for _ in range(2))
    assert first == second
    best = plan_json(trident, *SMALL, *ON, "--search")["ranked"]
    assert isinstance(best, list)
    assert isinstance(first["layout"], dict)
    assert first["layout"]["overrides"] == best[0]["overrides"]
    train = trident("train", "layout=auto", "data.source=synthetic", "model.vocab_size=512", "--dry-run")
    assert train.code == 0, train.err
    assert "the fastest that fits" in train.out


def test_what_words_set_beside_a_layout_that_is_to_be_found_stays(trident: Run) -> None:
    words = ("layout=auto", "layout.pipeline_parallel_size=2", "batch.micro_batch_size=2")
    found = plan_json(trident, *SMALL, *ON, *words)["layout"]
    assert isinstance(found, dict)
    assert (found["pipeline_parallel_size"], found["micro_batch_size"], found["world_size"]) == (2, 2, 8)


PUBLISHED = (
    *("cluster=a100_80gb", "cluster.engine=megatron", "precision=fp16", "zero.stage=0", "model.recompute=full"),
    *("model.seq_length=2048", "model.vocab_size=51200", "data.source=synthetic"),
)


def test_a_published_run_keeps_the_rules_of_its_own_software(trident: Run) -> None:
    words = (
        *("model.hidden_size=12288", "model.num_layers=80", "model.num_attention_heads=96", "layout=tp8_pp8_dp24"),
        *("batch.micro_batch_size=2", "batch.global_batch_size=2304", "cluster.nodes=192", "cluster.virtual_stages=2"),
    )
    found = plan_json(trident, *PUBLISHED, *words)
    assert found["fits"] is True
    # SC21, table 1: 148 TFLOP/s with recomputation, 24.82 s.
    assert found["step_time_s"] == pytest.approx(24.82, rel=0.1)


def test_other_software_does_not_run(trident: Run) -> None:
    answer = trident("train", *PUBLISHED, "--dry-run")
    assert answer.code == 2
    assert answer.problems == [
        "cluster.engine=megatron is for plans of published runs of other software, and must be trident in a run; "
        "leave it out"
    ]


def test_a_layout_that_is_to_be_found_is_refused_where_nobody_searches(trident: Run) -> None:
    answer = trident("balance", "layout=auto", "layout.pipeline_parallel_size=2", "data.source=synthetic")
    assert answer.code == 2
    assert "layout=auto is found by a run as it begins, and by `trident plan`" in answer.err


def test_a_budget_buys_a_run_that_composes(trident: Run) -> None:
    found = plan_json(trident, "budget=50usd", *ON, "cluster.usd_per_device_hour=2")
    overrides = found["overrides"]
    assert isinstance(overrides, list)
    assert problems(compose(list(overrides))) == []
    cost = found["cost_usd"]
    assert isinstance(cost, float)
    assert 45 <= cost <= 50
    again = plan_json(trident, *overrides)
    assert again["tokens"] == found["tokens"]
    assert again["days"] == pytest.approx(found["days"], rel=0.02)
    assert "words" in trident("plan", "budget=50usd", *ON, "cluster.usd_per_device_hour=2").out


def test_a_budget_fills_a_machine_of_the_kind_that_is_bought_and_keeps_what_words_set(trident: Run) -> None:
    found = plan_json(
        trident, "budget=1gpuh", "model=gpt2_124m", "cluster=dgx_h100", "zero=stage3", "model.recompute=full"
    )
    assert isinstance(found["overrides"], list)
    bought = compose(found["overrides"])
    layout = bought.layout
    assert isinstance(layout.data_parallel_size, int)
    assert layout.tensor_parallel_size * layout.data_parallel_size * layout.pipeline_parallel_size == 8
    assert bought.zero.stage == 3
    assert bought.model.recompute is RecomputeKind.full


def test_a_layout_is_found_for_the_machine_that_is_planned_for(trident: Run) -> None:
    found = plan_json(trident, *SMALL, "layout=auto", "cluster=dgx_h100", "batch.global_batch_size=8")
    layout = found["layout"]
    assert isinstance(layout, dict)
    sizes = [layout[f"{axis}_parallel_size"] for axis in ("pipeline", "tensor", "data")]
    assert math.prod(sizes) == 8


def test_a_schedule_of_very_many_micro_batches_is_not_played_event_by_event(
    trident: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unasked(*_: object) -> float:
        raise AssertionError("a schedule was played")

    monkeypatch.setattr("trainer.planner.schedule_time.makespan", unasked)
    found = plan_json(trident, *SMALL, *ON, "layout=pp2_dp4", "batch.global_batch_size=1048576")
    assert found["bubble_fraction"] == pytest.approx(0.0, abs=1e-3)
    with pytest.raises(AssertionError, match="played"):
        plan_json(trident, *SMALL, *ON, "layout=pp2_dp4")


def test_the_model_of_a_word_is_what_a_budget_trains(trident: Run) -> None:
    found = plan_json(trident, "budget=1gpuh", *ON, "model=gpt2_124m")
    assert found["parameters"] == 124439808


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("budget=0usd",), "budget must be a finite number above 0"),
        (("budget=5eur",), "the unit of '5eur' is eur"),
        (("budget=1e-9gpuh", "cluster=h100", "cluster.nodes=1"), "budget"),
        (("budget=5usd", "cluster=h100"), "cluster.usd_per_device_hour"),
        (("budget=5usd", "--search"), "cannot be combined"),
        (("cluster.device=H1000",), "H100"),
        (("cluster.device=V100", "precision=bf16"), "precision=fp16"),
        (("cluster=h100", "cluster.nodes=1", "layout=dp16"), "cluster"),
        (("cluster.device=A100", "cluster.nodes=4", "batch.global_batch_size=16"), "layout.data_parallel_size (32)"),
        (("cluster.inter_node_gbps=-1",), "cluster.inter_node_gbps"),
        (("--picture", "x.pdf"), ".svg"),
        (("--picture", "nowhere/x.svg"), "nowhere"),
        (("--picture", "x.svg", "--search"), "cannot be combined"),
        (("--picture", "x.svg", "layout=pp2", "batch.global_batch_size=1048576"), "1,048,576 micro-batches"),
        (("--calibrate", "cluster=h100"), "leave it out"),
        (("--calibrate", "--search"), "cannot be combined"),
        (("--calibrate", "--json"), "cannot be combined"),
        (("--calibrate", "--picture", "x.svg"), "cannot be combined"),
        (("--calibrate", "budget=5usd"), "cannot be combined"),
        (("budget=5gpuh", "cluster=h100", "layout=tp8"), "layout would have no effect"),
        (
            ("budget=5gpuh", "cluster=h100", "layout.pipeline_parallel_size=2"),
            "layout.pipeline_parallel_size would have",
        ),
        (("budget=5usd", "cluster=h100", "cluster.usd_per_device_hour=1e-300"), "must be 0.001 to 1000"),
        (("budget=1e308days", "cluster=h100"), "at most 1e+30"),
    ],
)
def test_bad_words_are_one_error(words: tuple[str, ...], part: str, trident: Run) -> None:
    answer = trident("plan", "data.source=synthetic", "model.vocab_size=512", *words)
    assert answer.code == 2
    assert len(answer.problems) == 1, answer.err
    assert part in answer.err
    assert answer.out == ""


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_picture_is_drawn(suffix: str, trident: Run, place: Path) -> None:
    answer = trident("plan", *SMALL, *ON, "layout=pp2", "--picture", f"plan.{suffix}")
    assert answer.code == 0, answer.err
    assert (place / f"plan.{suffix}").stat().st_size > 10_000
