"""OLMo 3: OLMo 2 with a window in three of four layers."""

from __future__ import annotations

from trainer.families.family import Family
from trainer.families.layer_fields import EveryFull
from trainer.families.olmo2 import ENTRIES, LINKS
from trainer.families.rope_fields import RopeByLayer

FAMILY = Family(
    name="OLMo 3",
    architecture="Olmo3ForCausalLM",
    model_type="olmo3",
    entries=(*ENTRIES, EveryFull(4, 4096), RopeByLayer(500000.0, 500000.0)),
    links=LINKS,
    prefix="model.",
    examples="OLMo 3 7B, 32B",
)
