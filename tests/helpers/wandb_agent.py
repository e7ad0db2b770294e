"""`wandb agent` without a server: the installed agent's own code, which is handed the points of a sweep and ends.

Usage: `python -m tests.helpers.wandb_agent SWEEP.json`, in the folder of the sweep. The file holds `path` (what `wandb
agent` is given), `command` and `points`; how the agent counted the runs is the last line of what is printed.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import wandb
from wandb import wandb_agent
from wandb.apis.public import sweeps


class _Server:
    """Answers heartbeats: one point at a time, then the end."""

    def __init__(self, sweep: dict[str, Any]) -> None:
        self._config = json.dumps({"command": sweep["command"]})
        self._points = list(sweep["points"].items())

    def sweep_with_runs(self, *_: object) -> dict[str, object]:
        return {"config": self._config}

    def register_agent(self, *_: object, **__: object) -> dict[str, str]:
        return {"id": "agent"}

    def heartbeat(self, _api: object, _agent: object, _metrics: object, running: dict[str, bool]) -> list[Any]:
        if running:
            return []
        if not self._points:
            return [{"type": "exit"}]
        run_id, values = self._points.pop(0)
        arguments = {name: {"value": value} for name, value in values.items()}
        return [{"type": "run", "run_id": run_id, "program": "trainer", "args": arguments}]


def main(path: str) -> None:
    """Run the sweep."""
    with open(path) as file:
        sweep = json.load(file)
    server = _Server(sweep)
    patches = {
        "_sweep_with_runs": server.sweep_with_runs,
        "_register_agent": server.register_agent,
        "_agent_heartbeat": server.heartbeat,
    }
    for name, stand_in in patches.items():
        assert hasattr(sweeps, name), f"the agent has changed: {name} is gone"
        setattr(sweeps, name, stand_in)
    wandb.Api = lambda: None  # type: ignore[misc,assignment]
    agents: list[wandb_agent.Agent] = []

    class Quick(wandb_agent.Agent):
        POLL_INTERVAL = 0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            agents.append(self)

    wandb_agent.Agent = Quick  # type: ignore[misc]
    wandb_agent.run_agent(sweep["path"])
    [agent] = agents
    sys.stdout.write(json.dumps({"finished": agent._finished, "failed": agent._failed}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
