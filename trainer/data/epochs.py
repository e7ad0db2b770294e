"""The number of steps of a run whose length is given in epochs, once its data are known. No torch."""

from __future__ import annotations

import math
from dataclasses import replace

from trainer.config.batch_sizes import batch_sizes
from trainer.config.schema import TridentConfig
from trainer.config.validate import problems
from trainer.data.prepared import PreparedData
from trainer.data.streams import new_stream
from trainer.errors import ConfigError


def with_steps(config: TridentConfig, prepared: PreparedData) -> TridentConfig:
    """Return the config with `train.steps` in place of `train.epochs`; as it is where there are none.

    The steps are as few as read all epochs: the last one may begin another epoch.

    Raises:
        DataError: a source has no sample.
        ConfigError: a rule about the number of steps is broken.
    """
    epochs, seq_length = config.train.epochs, config.model.seq_length
    if epochs is None:
        return config
    samples = sum(source.samples for source in new_stream(prepared, config, seq_length).segments[0].sources)
    sizes, wanted = batch_sizes(config.batch, seq_length), math.ceil(epochs * samples)
    ramp = sizes.warmup[-1][0] if sizes.warmup else 0
    after = ramp - (sizes.sequences(ramp) - wanted) // sizes.final
    steps = after if after > ramp else next(step for step in range(1, ramp + 1) if sizes.sequences(step) >= wanted)
    known = replace(config, train=replace(config.train, steps=steps, epochs=None))
    before = problems(config)
    found = [problem for problem in problems(known) if problem not in before]
    if found:
        raise ConfigError(found, [f"train.epochs={epochs:g} are {steps:,} steps over {samples:,} samples"])
    return known
