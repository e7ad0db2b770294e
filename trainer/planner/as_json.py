"""The object that `trident plan --json` prints: stable keys, described in docs/planner.md. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from trainer.planner.budget import Answer
from trainer.planner.layout_search import Found, Search
from trainer.planner.plan_report import PlanReport
from trainer.planner.prediction import Prediction
from trainer.planner.record import prediction_record
from trainer.planner.scaling_laws import LLAMA3, Balance


def report_json(report: PlanReport) -> dict[str, object]:
    """Return the whole report as plain values."""
    plan = report.plan
    return {
        "model": {
            "name": plan.name,
            "parameters": plan.model.parameter_count,
            "tokens_per_parameter": report.tokens / plan.model.parameter_count,
        },
        "layout": layout_json(Found(plan, report.prediction)),
        "cluster": {
            "device": report.cluster.device,
            "nodes": report.cluster.nodes,
            "devices_per_node": report.cluster.devices_per_node,
            "engine": report.cluster.software.value,
        },
        "tokens": report.tokens,
        **prediction_json(report.prediction),
        **report.price.to_dict(),
        "loss": {name: asdict(band) for name, band in report.losses.items()},
        "compute_optimal": _balance(report.balance),
        "nearest_that_fit": found_json(report.fitting),
        "faster": _found(report.faster),
        "constants": prediction_record(report.prediction)["constants"],
    }


def prediction_json(prediction: Prediction) -> dict[str, object]:
    """Return memory, time and speed of a prediction as plan.json has them, without the numbers that it rests on."""
    return {name: value for name, value in prediction_record(prediction).items() if name != "constants"}


def layout_json(found: Found) -> dict[str, object]:
    """Return a layout with the overrides that give it."""
    plan, config = found.plan, found.config
    return {
        "overrides": list(found.words),
        "pipeline_parallel_size": plan.pipeline_parallel_size,
        "tensor_parallel_size": plan.tensor_parallel_size,
        "data_parallel_size": plan.data_parallel_size,
        "sequence_parallel": plan.sequence_parallel,
        "pipeline_schedule": config.layout.pipeline_schedule.value,
        "zero_stage": config.zero.stage,
        "offload": config.zero.offload.value,
        "offload_parameters": config.zero.offload_parameters,
        "micro_batch_size": plan.micro_batch_size,
        "num_micro_batches": plan.num_micro_batches,
        "recompute": config.model.recompute.value,
        "world_size": plan.world_size,
    }


def answer_json(answer: Answer, words: Sequence[str]) -> dict[str, object]:
    """Return what a budget buys as plain values; `words` are those behind which the answer's are pasted."""
    best = answer.best
    return {
        "budget": str(answer.budget),
        "overrides": [*words, *answer.overrides],
        "parameters": best.candidate.parameters,
        "tokens": best.tokens,
        "steps": best.steps,
        "devices": best.speed.devices,
        "tokens_per_second": best.speed.tokens_per_second,
        "mfu": best.speed.mfu,
        **answer.price.to_dict(),
        "loss": {name: asdict(band) for name, band in answer.losses.items()},
        "compute_optimal": _balance(answer.balance),
        "is_held_back_by_memory": answer.is_held_back_by_memory,
    }


def _balance(balance: Balance) -> dict[str, object]:
    theirs = LLAMA3.optimum(balance.optimum.flops)
    return {
        "tokens_per_parameter": balance.tokens_per_parameter,
        "optimal_tokens_per_parameter": balance.optimum.tokens_per_parameter,
        "optimal_parameters": balance.optimum.parameters,
        "optimal_tokens": balance.optimum.tokens,
        "llama3_parameters": theirs.parameters,
        "llama3_tokens": theirs.tokens,
        "verdict": balance.words,
    }


def search_json(found: Search) -> dict[str, object]:
    """Return the result of a search as plain values."""
    return {
        "considered": found.considered,
        "fitting": found.fitting,
        "ranked": [_found(one) for one in found.ranked],
        "pareto": found_json(found.pareto),
        "least_memory": _found(found.least),
    }


def found_json(found: Iterable[Found]) -> list[dict[str, object] | None]:
    """Return layouts with their prediction."""
    return [_found(one) for one in found]


def _found(found: Found | None) -> dict[str, object] | None:
    return None if found is None else {**layout_json(found), **prediction_json(found.prediction)}
