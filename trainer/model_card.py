"""The README.md of an exported model: facts of its run. No torch."""

from __future__ import annotations

from pathlib import Path

from trainer.checkpoint.manifest import IMPORTED_FROM, Manifest
from trainer.config.hf_export import Expressed
from trainer.config.hf_folder import is_hub_name
from trainer.config.schema import DataSource, TridentConfig
from trainer.run_paths import CHECKPOINTS


def model_card(config: TridentConfig, manifest: Manifest, said: Expressed, dtype: str, told: str) -> str:
    """Return the card as Markdown, with the metadata that the hub reads in front."""
    model, state = said.model, manifest.train_state
    rows = {
        "Architecture": f"{said.family.architecture} ({said.family.name})",
        "Parameters": f"{model.parameter_count:,}",
        "Vocabulary": f"{model.vocab_size:,} ids",
        "Sequence length": f"{config.model.seq_length:,} tokens",
        "Number format": dtype,
        "Training steps": f"{manifest.step:,}",
        "Training tokens": f"{int(str(state.get('tokens_seen', 0))):,}",
        "Began with": _name(config.checkpoint.init_from or str(manifest.layout.get(IMPORTED_FROM, "random weights"))),
        **(_training(config, manifest) if manifest.step else _UNTRAINED),
        "Software": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        "Check": told,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- trident
---

# {config.name}

Trained with Trident, and written by `trident export`.

| | |
|---|---|
{table}

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("PATH")
```
"""


_UNTRAINED = {"Data": "none: the weights were imported and not trained"}


def _training(config: TridentConfig, manifest: Manifest) -> dict[str, str]:
    return {
        "Data": _data(config),
        "Batch": f"{config.batch.global_batch_size} sequences",
        "Learning rate": f"{config.optimizer.lr:g}",
        "Layout": ", ".join(f"{key} {value}" for key, value in manifest.layout.items() if key.endswith("_size")),
    }


def _name(source: str) -> str:
    """Return the name of a source: a card is published, and folders of a machine are nobody's business."""
    path = Path(source)
    if path.parent.name == CHECKPOINTS:
        return f"{path.parent.parent.name} ({path.name})"
    return source if is_hub_name(source) else path.name


def _data(config: TridentConfig) -> str:
    data = config.data
    files = ", ".join(Path(file).name for file in data.files)
    named = {DataSource.files: files, DataSource.megatron: files}
    return f"{data.source.value} {named.get(data.source, data.hub_path or '')}".strip()
