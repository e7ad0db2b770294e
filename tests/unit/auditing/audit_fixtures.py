"""A run without a model: it reads, hashes, journals and saves as a run does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.unit.data.data_fixtures import config
from trainer.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from trainer.checkpoint.origin import Found, Origin, Use, write_origin
from trainer.checkpoint.resume import starting_state
from trainer.checkpoint.store import CheckpointStore
from trainer.config.plan import make_plan
from trainer.config.schema import TridentConfig
from trainer.config.written import to_yaml
from trainer.data.batches import training_batches
from trainer.data.ledger import short_ledger
from trainer.data.prepare import prepare
from trainer.data.prepared import stream_identity
from trainer.data.stream_plan import StreamPlan
from trainer.data.streams import WantedStream
from trainer.loop.state import TrainState
from trainer.metrics.journal_sink import JournalSink
from trainer.metrics.jsonl import drop_rows_from, line_of
from trainer.run_folder import DATA_FOLDER, STREAM
from trainer.run_paths import RunPaths

TEXTS = [f"document {number}: " + "words and more words " * (number % 7) for number in range(400)]


class PlayedRun:
    """A run of 4 sequences of 16 tokens a step that logs each second step and saves each fifth.

    Args:
        folder: folder that holds the text, the cache and the runs.
        name: name of the run's folder in it.
        keys: keys of the config.
    """

    def __init__(self, folder: Path, name: str, **keys: Any) -> None:
        text = folder / "text.jsonl"
        if not text.exists():
            text.write_text("".join(json.dumps({"text": one}) + "\n" for one in TEXTS))
        self.run, self._keys = folder / name, keys
        self.cache = folder / "cache"
        self._text = text
        self.paths = RunPaths(self.run)
        self.paths.checkpoint_folder.mkdir(parents=True)
        self.begin()
        self.state = starting_state(None, self.plan, self.stream, WantedStream(self.prepared, self.config))

    def begin(self, **keys: Any) -> None:
        """Start the command, with other keys."""
        self._keys |= keys
        self.config: TridentConfig = config(
            **{
                "run_dir": str(self.run),
                "data__source": "files",
                "data__files": [str(self._text)],
                "data__cache_dir": str(self.cache),
                "tokenizer__kind": "bytes",
                "model__seq_length": 16,
                "batch__global_batch_size": 4,
                **self._keys,
            }
        )
        self.prepared = prepare(self.config)
        self.plan = make_plan(self.config, self.prepared.vocab_size)
        self.stream = stream_identity(self.prepared, self.config)
        assert self.prepared.tokenizer_folder is not None
        shutil.copytree(self.prepared.tokenizer_folder, self.paths.tokenizer, dirs_exist_ok=True)
        self.paths.config.write_text(to_yaml(self.config))
        self.paths.plan.write_text(json.dumps({STREAM: self.stream, DATA_FOLDER: str(self.prepared.folder)}))

    def train(self, last: int, saves: bool = True, journals: bool = True) -> PlayedRun:
        """Train on from the state to step `last`."""
        if journals:
            JournalSink(self.paths.journal, self.plan, self.state).start(self.state.step + 1)
        drop_rows_from(self.paths.metrics, self.state.step + 1)
        stream = StreamPlan.from_list(self.state.sample_length, self.state.segments)
        source = training_batches(self.prepared, self.plan, stream, 0, torch.device("cpu"))
        for step in range(self.state.step + 1, last + 1):
            state = self.state
            state.sample_ledger = source.ledger(state.sample_ledger, state.position, step)
            state.step = step
            state.position += self.plan.tokens_of_step(step)
            if step % 2 == 0:
                with self.paths.metrics.open("a") as file:
                    file.write(line_of({"step": step, "data/sample_ledger": short_ledger(state.sample_ledger)}))
            if step % 5 == 0 and saves:
                self.save()
        return self

    def save(self) -> None:
        """Save a checkpoint of the state."""
        folder = CheckpointStore(self.run).path(self.state.step)
        folder.mkdir()
        manifest = Manifest(self.state.step, 300, self.state.to_dict(), {}, None, {}, {}, {})
        (folder / MANIFEST).write_text(manifest.to_json())

    def saved(self, step: int) -> TrainState:
        """Return the state in a checkpoint."""
        return TrainState.from_dict(read_manifest(CheckpointStore(self.run).path(step)).train_state)

    def resume(self, step: int) -> PlayedRun:
        """Go on from a checkpoint, as a new start does."""
        path = CheckpointStore(self.run).path(step)
        found = Found(path, read_manifest(path))
        self.state = starting_state(found, self.plan, self.stream, WantedStream(self.prepared, self.config))
        return self

    def rewind(self, step: int) -> PlayedRun:
        """Go back to a checkpoint, and leave out what was read since."""
        self.state = replace(self.saved(step), position=self.state.position)
        return self

    def finish(self, status: str = "finished") -> PlayedRun:
        """Write the summary."""
        held = {"status": status, "step": self.state.step, "sample_ledger": self.state.sample_ledger}
        self.paths.summary.write_text(json.dumps(held))
        return self

    def fork(self, folder: Path, name: str, step: int, **keys: Any) -> PlayedRun:
        """Return a run that begins with a checkpoint of this one."""
        path = CheckpointStore(self.run).path(step)
        forked = PlayedRun(folder, name, **{**self._keys, **keys})
        found = Found(path, read_manifest(path), Use.resumed)
        forked.state = starting_state(found, forked.plan, forked.stream, WantedStream(forked.prepared, forked.config))
        write_origin(forked.run, Origin.of(found, str(path)))
        return forked
