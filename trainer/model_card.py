"""The README.md of an exported model: facts of its run. No torch."""

from __future__ import annotations

from pathlib import Path

from trainer.checkpoint.manifest import IMPORTED_FROM, Manifest
from trainer.config.hf_export import Expressed
from trainer.config.hf_folder import is_hub_name
from trainer.config.lora import scale_of
from trainer.config.schema import DataSource, TridentConfig
from trainer.run_paths import CHECKPOINTS


def model_card(
    config: TridentConfig, manifest: Manifest, said: Expressed, dtype: str, told: str, base: str | None = None
) -> str:
    """Return the card as Markdown, with the metadata that the hub reads in front.

    Args:
        config: the run's config.
        manifest: the checkpoint's manifest.
        said: the model in the words of a family.
        dtype: number format of the weights.
        told: result of the comparison with transformers, in words.
        base: the model that the folder's adapters are added to; None: the folder is a whole model.
    """
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
    lora = config.model.lora
    if lora.rank is not None:
        targets = ", ".join(target.value for target in lora.targets)
        rows["LoRA"] = f"rank {lora.rank}, scale {scale_of(lora):g}, on {targets}"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""---
library_name: {"transformers" if base is None else "peft"}
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
{_LOADED if base is None else _ADAPTED.format(base=base)}
```
"""


_LOADED = """from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("PATH")"""
_ADAPTED = """from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "PATH")"""
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
    named = {DataSource.files: files, DataSource.megatron: files, DataSource.tokens: files}
    return f"{data.source.value} {named.get(data.source, data.hub_path or '')}".strip()
