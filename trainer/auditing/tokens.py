"""The tokens that a run read, found again in the cache."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import TridentConfig
from trainer.data.batches import training_batches
from trainer.data.dataset import SampleStream
from trainer.data.journal import Stretch
from trainer.data.picks import Picks, Rows
from trainer.data.prepare import look_into, look_up
from trainer.data.prepared import PreparedData, Source, sources_of, stream_identity
from trainer.data.stream_plan import StreamPlan
from trainer.data.streams import WantedStream
from trainer.data.token_files import TRAIN
from trainer.data.tokenizer import Tokenizer, load_tokenizer
from trainer.errors import ConfigError, DataError
from trainer.run_folder import DATA_FOLDER
from trainer.run_paths import RunPaths


class RunTokens:
    """The tokens of one run.

    Args:
        run: the run's folder.
        config: its config.
        segments: plan of its stream, if its data changed on the way; see `Stretch.segments`.
    """

    def __init__(self, run: Path, config: TridentConfig, segments: Sequence[Mapping[str, Any]] = ()) -> None:
        self.run = run
        self.config = config
        self._segments = segments
        self._streams: dict[int, SampleStream] = {}
        self._kept: dict[tuple[int, int], bool] = {}

    @cached_property
    def prepared(self) -> PreparedData:
        """The tokens on disk.

        Raises:
            DataError: they are not in the cache any more.
        """
        why: DataError | ConfigError | None = None
        kept, folder = None if self.config.data.blend.sources else self._folder(), None
        # The folder that the run read itself: the files that its tokens were made of may be gone or changed.
        found = None if kept is None else look_into(kept, self.config)
        if found is None:
            try:
                folder, found = look_up(self.config)
            except (DataError, ConfigError) as error:
                why = error
        if found is None:
            raise DataError(
                f"the tokens that {self.run} read must be in the cache to be compared, but {kept or folder} has none"
                + (f", and they cannot be looked for: {why}" if why is not None else ""),
                hints=["prepare them anew: trident data, with the data.*, tokenizer.* and model.* of its config.yaml"],
            )
        return found

    def _folder(self) -> Path | None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return Path(json.loads(RunPaths(self.run).plan.read_text(encoding="utf-8"))[DATA_FOLDER])
        return None

    @cached_property
    def identity(self) -> str:
        """Identity of the stream that config and cache give."""
        return stream_identity(self.prepared, self.config)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer in the run's folder; None if there is none that can be read."""
        folder = RunPaths(self.run).tokenizer
        with suppress(DataError, ConfigError, OSError):
            return load_tokenizer(folder) if folder.is_dir() else None
        return None

    def check(self, stretch: Stretch) -> None:
        """Check that config and cache give the stream that a stretch was read from.

        Raises:
            DataError: they give another one, or the tokens are gone.
        """
        # Of data that changed, earlier ones are the beginning: the hashes say whether they are.
        if not self._segments and stretch.stream not in ("", self.identity):
            raise DataError(
                f"config.yaml and the cache must give the stream that {self.run} read ({stretch.stream}), but "
                f"{self.prepared.folder} gives another one ({self.identity}): tokens, seed or data.max_samples changed",
                hints=["put back the data, or prepare them anew from the same files: trident data"],
            )

    def has(self, stretch: Stretch, step: int) -> bool:
        """Return whether the tokens of a step are among the data that the run reads by now."""
        if not self._segments:
            return True
        length = stretch.sample_length
        plan = StreamPlan.from_list(length, self._segments)
        places = stretch.position_of(step) // length, (stretch.position_of(step + 1) - 1) // length
        return all(self._are_kept(plan, plan.segment_at(place)) for place in places)

    def _are_kept(self, plan: StreamPlan, index: int) -> bool:
        """Return whether the sources of a segment have the samples still that they had then."""
        key = plan.sample_length, index
        if key not in self._kept:
            wanted = WantedStream(self.prepared, self.config)
            now = {one.name: one for one in wanted.begun(plan.sample_length).segments[0].sources}
            self._kept[key] = all(
                one.name in now and one.samples <= now[one.name].samples and wanted.continues(one, now[one.name])
                for one in plan.segments[index].sources
            )
        return self._kept[key]

    def rows(self, stretch: Stretch, step: int) -> Rows:
        """Return the sequences of the global batch of a step, with all their tokens.

        Raises:
            DataError: the data were replaced since, and do not hold them any more.
        """
        if not self.has(stretch, step):
            raise DataError(
                f"the data of {self.run} must hold the tokens of step {step} to be looked at, but were replaced "
                "since (data.on_change)"
            )
        count, length = stretch.sizes.at(step), stretch.seq_length
        starts = stretch.position_of(step) + np.arange(count) * length
        return self._stream(stretch.sample_length).sequences(starts, length)

    def changes(self, stretch: Stretch, step: int) -> Sequence[Mapping[str, Any]]:
        """Return the segments of the stream that begin in the global batch of a step: they are hashed with it."""
        plan, start = self._stream(stretch.sample_length).plan, stretch.position_of(step)
        return [] if plan is None else plan.begun_between(start, stretch.position_of(step + 1))

    def picks(self, stretch: Stretch, step: int) -> Picks:
        """Return the samples that the global batch of a step holds, in order."""
        tokens = stretch.sizes.at(step) * stretch.seq_length
        return self._stream(stretch.sample_length).picks(stretch.position_of(step), tokens)

    def begins(self, source: int, sample: int, length: int) -> npt.NDArray[np.bool_]:
        """Return whether a document of text begins at each of the `length` tokens of a sample of a source."""
        return self._sources[source].prepared.shards(TRAIN).begins(sample * length, length)

    def name_of(self, source: int) -> str:
        """Return the name of a source of a blend; empty for data that are none."""
        return self._sources[source].name if len(self._sources) > 1 else ""

    @cached_property
    def _sources(self) -> tuple[Source, ...]:
        return sources_of(self.prepared, self.config)

    def _stream(self, sample_length: int) -> SampleStream:
        if sample_length not in self._streams:
            segments = self._segments
            stream = StreamPlan.from_list(sample_length, segments) if segments else sample_length
            batches = training_batches(self.prepared, self._plan, stream, 0, torch.device("cpu"))
            self._streams[sample_length] = batches.stream
        return self._streams[sample_length]

    @cached_property
    def _plan(self) -> RunPlan:
        """The run's plan on one device: what is read does not depend on the layout."""
        config = self.config
        layout = replace(
            config.layout,
            pipeline_parallel_size=1,
            tensor_parallel_size=1,
            data_parallel_size=1,
            sequence_parallel=False,
        )
        one = replace(config, layout=layout, batch=replace(config.batch, micro_batch_size=1))
        return make_plan(one, self.prepared.vocab_size)
