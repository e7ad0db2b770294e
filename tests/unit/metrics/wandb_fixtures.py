"""A wandb sink with what tests of it share: ears for what it says, a run that only remembers, a server that answers."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from trainer.config.schema import LoggingConfig, WandbMode
from trainer.metrics.wandb_mode import WandbChoice
from trainer.metrics.wandb_sink import Checkpoints, Tell, WandbSink

KEY = "k" * 40


class Voice:
    """What the sink told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.noted: list[str] = []
        self.warned: list[str] = []


def make_sink(
    run_dir: Path,
    voice: Voice,
    mode: WandbMode = WandbMode.offline,
    logging: LoggingConfig | None = None,
    checkpoints: Checkpoints | None = None,
) -> WandbSink:
    return WandbSink(
        run_dir=run_dir,
        logging=logging or LoggingConfig(wandb_tags=("mine",)),
        choice=WandbChoice(mode, "no API key is set"),
        group="tiny",
        tags=("pp1_tp1_dp1",),
        config={"model": {"hidden_size": 64}, "api_key": "s3cr3t-value"},
        tell=Tell(voice.said.append, voice.noted.append, voice.warned.append),
        checkpoints=checkpoints,
    )


class Server:
    """As much of a wandb server as a run and `wandb sync` ask for. It keeps the history of each run by its line."""

    def __init__(self) -> None:
        self.history: dict[str, dict[int, dict[str, Any]]] = {}
        self.operations: list[str] = []
        self.alerts: list[tuple[str, str, str]] = []
        self.configs: list[dict[str, Any]] = []
        self.groups: set[object] = set()
        self.url = ""

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/graphql":
            asked = json.loads(body)
            name = asked.get("operationName") or asked["query"].split("(")[0].split()[-1]
            self.operations.append(name)
            return {"data": self._graphql(name, asked.get("variables") or {})}
        if path.endswith("/file_stream"):
            self._file_stream(path.split("/")[-2], json.loads(body))
            return {"exitcode": None, "limits": {}}
        return {}

    def _graphql(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p", "name": "trident", "entity": {"id": "e", "name": "me"}}
        if name == "RunResumeStatus":
            return {"model": {**project, "bucket": self._bucket(values["name"])}}
        if name == "UpsertBucket":
            self.groups.add(values.get("groupName"))
            self.configs.append(json.loads(values["config"] or "{}"))
            self.history.setdefault(values["name"], {})
            run = {"id": "b", "name": values["name"], "displayName": "x", "description": "", "config": "{}"}
            run |= {"sweepName": "", "project": project, "historyLineCount": len(self.history[values["name"]])}
            return {"upsertBucket": {"bucket": run, "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/put"} for file in values["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if name == "NotifyScriptableRunAlert":
            self.alerts.append((values["severity"], values["title"], values["text"]))
        return {}

    def _bucket(self, run: str) -> dict[str, Any] | None:
        if run not in self.history:
            return None
        lines = self.history[run]
        tail = json.dumps([json.dumps(lines[max(lines)])] if lines else [])
        bucket: dict[str, Any] = {"id": "b", "name": run, "displayName": "x", "summaryMetrics": "{}", "config": "{}"}
        bucket |= {"logLineCount": 0, "historyLineCount": len(lines), "eventsLineCount": 0, "historyTail": tail}
        return bucket | {"eventsTail": "[]", "tags": [], "wandbConfig": '{"t":1}'}

    def _file_stream(self, run: str, body: dict[str, Any]) -> None:
        for file, chunk in (body.get("files") or {}).items():
            if file == "wandb-history.jsonl":
                for index, line in enumerate(chunk["content"], start=chunk["offset"]):
                    self.history[run][index] = json.loads(line)


@contextmanager
def wandb_server() -> Iterator[Server]:
    """Run such a server on this machine."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def _reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            data = json.dumps(server.answer(self.path, body)).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _reply

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
