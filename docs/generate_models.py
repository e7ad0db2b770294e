#!/usr/bin/env python3
"""Write docs/models.md: how a Hugging Face model comes in and goes out, and the families that the registry knows."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from trainer.families.family import Family
from trainer.families.fields import Equal, Refusal
from trainer.families.registry import FAMILIES, MISSING
from trainer.families.size_fields import HeadDim
from trainer.log import say

PAGE = Path(__file__).parent / "models.md"

INTRODUCTION = """# Models of Hugging Face

Trident has one block with options, and a *family* says which options a published architecture is made of. So a model
that transformers loads can be trained on in any layout, and what was trained can be loaded by transformers again. The
options are explained in [model_options.md](model_options.md). This page is written by `python
docs/generate_models.py` from the registry of families.

## Train on from a model

```bash
trident train model=hf model.path=SRC checkpoint.init_from=SRC layout=tp2_pp2 data.source=files 'data.files=[my/*.txt]'
```

SRC is a folder with `config.json` and safetensors (one file, or shards with their index; an old `pytorch_model.bin`
is read too, with torch's unpickler for weights, which runs no code), or the name of a model on the hub. `trident
import` also takes a GGUF file: see below.

- `model=hf model.path=SRC` makes plain keys of `config.json`. Keys stay as they are that you type, or that a file names
  which is merged after the model's (a recipe, for example), above all `model.seq_length`, which is otherwise as long as
  the model was made for. Without a tokenizer key the tokenizer of SRC is taken, which must have a
  `tokenizer.json`. `config.yaml` in the run's folder holds the plain keys: the run goes on without SRC.
- `checkpoint.init_from=SRC` reads the weights: each rank reads what it needs, one tensor at a time, straight into its
  layout. There is no conversion step; step, optimizer and schedule are new.
- A model whose rotary frequencies depend on the length of the text (`dynamic`, `longrope`) begins with the length
  that its frequencies were trained with; a larger `model.seq_length` chooses those of long texts.

## In and out

```bash
trident import SRC runs/mine      # a run folder: generate, export and checkpoint.init_from take it
trident export runs/mine OUT      # a folder for AutoModelForCausalLM.from_pretrained(OUT)
trident generate SRC prompt=...   # reads SRC as it is
```

Both go through the weights one tensor at a time, then compare logits with transformers on a fixed batch, in fp32: the
largest difference must be below 1e-4, and the divergence is told. The comparison computes both models layer by layer,
and holds one layer at a time; of pickles it writes safetensors below DST first, for as long as it takes. `check=false`
leaves it out. When it fails, or anything else does, nothing of what was written stays.

`trident import FILE.gguf DST` reads what transformers reads of llama.cpp's format; it needs the extra `gguf` (`pip
install 'trident-trainer[gguf]'`). Quantised weights become fp32, and it takes the memory of the whole model, since
transformers makes all tensors at once. transformers leaves out what it does not know, for example scaled rotary
positions: a file that says such a thing is refused, with the key that it has.
There is no export to GGUF: no library that is kept up writes it.

`trident export` writes safetensors in shards of at most 5 GB with an index, `config.json` with both spellings of
rotary positions and of the number format (versions of transformers before 5 read the other ones), and a model card
with the facts of the run. `--dtype fp32|bf16|fp16` chooses the format; without it, it is that of the model that the
run began with, otherwise bf16. Tokenizer, chat template and generation config of an imported model are copied as they
were. Padding of the vocabulary that a layout adds is left out, padding of the published model stays.

A key of `config.json` that no class of transformers reads is refused as well, unless it is known to change nothing
(`trainer/families/unread_keys.py`) or null.

A model that no family can say is refused, with the nearest family and the options that it lacks.

## Families
"""

REFUSED = """
## What is not there

A file that asks for one of these is refused with the sentence that names it.

"""

NEWCOMER = """
## Add a family

A family is one file in `trainer/families/` and one line in `trainer/families/registry.py`. This is all of Qwen 2:

```python
{example}
```

- `entries` are the keys of `config.json`, both ways. A `Field` is one key for one key with the default of
  transformers' class; a `Constant` is an option that all models of the family share; a `Refusal` is a key that may
  have one value only; a `Listed` key does not change what the model computes. Rotary positions and windows have
  entries of their own.
- `links` pair each tensor of ours with theirs. A layout is a permutation of elements: `Same`, `Transposed`, `Stacked`
  (queries, keys and values one after the other), `Grouped` (by heads), `Rotated` (rotary pairs side by side). What
  would change a value is an option of the model and no conversion.
- A line in `tests/helpers/hf_families.py` makes a tiny model of it. The tests then ask that its links are
  permutations, that every key of transformers' class, and every one that its model reads, is known with its default,
  that a config survives both ways, that what is exported is what was imported, bit for bit, and that logits, greedy
  texts, every gradient and three trained steps are transformers', in one process and over stages and tensor-parallel
  ranks. `pytest tests/dist/test_hugging_face_weights.py --run-matrix` asks that of every case in every layout.

If the architecture needs an option that the block does not have, the option comes first: see *A model option* in
CONTRIBUTING.md.
"""


def _refusals(family: Family) -> Iterator[str]:
    for entry in family.entries:
        if isinstance(entry, Refusal | Equal):
            yield f"`{entry.theirs}`"
        elif isinstance(entry, HeadDim) and not entry.is_free:
            yield from (f"`{key}`" for key in entry.defaults)


def page() -> str:
    """Return the text of docs/models.md."""
    rows = ["| family | class in transformers | models | refused keys |", "|---|---|---|---|"]
    for family in FAMILIES:
        refused = ", ".join(_refusals(family)) or "-"
        rows.append(f"| {family.name} | `{family.architecture}` | {family.examples} | {refused} |")
    missing = [f"- `{architecture}` needs {what}." for architecture, what in MISSING.items()]
    file = Path(__file__).parents[1] / "trainer" / "families" / "qwen2.py"
    newcomer = NEWCOMER.format(example=file.read_text(encoding="utf-8").rstrip())
    return "\n".join([INTRODUCTION, *rows, REFUSED.rstrip(), "", *missing, newcomer])


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is stale")
    check: bool = parser.parse_args().check
    text = page()
    if check:
        is_fresh = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        say(f"{PAGE.name} is {'up to date' if is_fresh else 'stale: run python docs/generate_models.py'}")
        return 0 if is_fresh else 1
    PAGE.write_text(text, encoding="utf-8")
    say(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
