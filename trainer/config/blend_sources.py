"""The config of each source of a blend: that of the run, with the source's own keys of data. No torch."""

from __future__ import annotations

from dataclasses import replace

from trainer.config.blend import ONE_SOURCE
from trainer.config.schema import DataConfig, DataSource, TridentConfig
from trainer.config.schema_data import ID_FILES

READY_MADE = (DataSource.synthetic, *ID_FILES)
"""Sources of token ids, which no tokenizer makes."""


def source_configs(config: TridentConfig) -> dict[str, TridentConfig]:
    """Return name -> config of each source of `data.blend`, in order; none where `data` is the only source."""
    return {one.name: replace(config, data=_source(config.data, dict(one.keys))) for one in config.data.blend.sources}


def _source(data: DataConfig, keys: dict[str, object]) -> DataConfig:
    """Return the keys of a source. Which kind of source it is follows from its paths, where it does not say."""
    if "source" not in keys:
        if "hub_path" in keys:
            keys["source"] = DataSource.hub
        elif "files" in keys and data.source in (DataSource.stdlib, DataSource.hub, DataSource.synthetic):
            keys["source"] = DataSource.files
    own: DataConfig = replace(data, **keys, blend=ONE_SOURCE, blend_schedule=())  # type: ignore[arg-type]
    return own
