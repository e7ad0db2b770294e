"""The results of the Language Model Evaluation Harness, as numbers, as a table and as JSON. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_KEPT = ("results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples", "configs")
_STDERR = "_stderr"


def _metrics(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str, float, object]]:
    """Yield task, metric, filter, value and standard error."""
    for task, metrics in results["results"].items():
        for key, value in metrics.items():
            metric, _, kept = key.partition(",")
            if isinstance(value, int | float) and kept and not metric.endswith(_STDERR):
                yield task, metric, kept, float(value), metrics.get(f"{metric}{_STDERR},{kept}")


def numbers_of(results: Mapping[str, Any]) -> dict[str, float]:
    """Return `task/metric` -> value, without standard errors. A filter is part of the name: `exact_match_strict`."""
    return {
        f"{task}/{metric}{'' if kept == 'none' else f'_{kept}'}": value
        for task, metric, kept, value, _ in _metrics(results)
    }


def table(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a row for each metric of each task, the first with the names of the columns."""
    rows: list[tuple[str, ...]] = [("task", "few-shot", "metric", "value", "stderr")]
    for task, metric, kept, value, error in _metrics(results):
        name = metric if kept == "none" else f"{metric} ({kept})"
        shown = f"{error:.4f}" if isinstance(error, int | float) else ""
        rows.append((task, str(results.get("n-shot", {}).get(task, "")), name, f"{value:.4f}", shown))
    return rows


def kept_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of the results, as JSON holds it."""
    kept = {name: results[name] for name in _KEPT if results.get(name)}
    found: dict[str, Any] = json.loads(json.dumps(kept, default=_shown))
    return found


def _shown(value: object) -> str:
    return getattr(value, "__name__", str(value))
