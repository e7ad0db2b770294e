"""The families that are known. A new one is a file and a line here."""

from __future__ import annotations

from importlib import import_module

from trainer.errors import ConfigError
from trainer.families.family import Family
from trainer.families.fields import Values

_FILES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gpt2",
    "gpt_neox",
    "phi3",
    "smollm3",
    "olmo2",
    "olmo3",
    "gemma1",
    "gemma3",
    "phi",
    "stablelm",
    "falcon",
    "olmo1",
    "cohere",
    "gptj",
    "gpt_neo",
    "opt",
    "gpt1",
    "bloom",
    "granite",
)
"""Files of this room that declare a `FAMILY`."""

FAMILIES: tuple[Family, ...] = tuple(import_module(f"trainer.families.{name}").FAMILY for name in _FILES)
"""All families; where several can say a model, an export takes the first."""

MISSING: dict[str, str] = {
    "Gemma2ForCausalLM": "a soft cap of the scores",
    "Gemma3ForConditionalGeneration": "images",
    "GptOssForCausalLM": "attention sinks",
    "DeepseekV2ForCausalLM": "latent attention (MLA)",
    "DeepseekV3ForCausalLM": "latent attention (MLA)",
    "MixtralForCausalLM": "experts",
    "Qwen2MoeForCausalLM": "experts",
    "Qwen3MoeForCausalLM": "experts",
    "OlmoeForCausalLM": "experts",
    "GraniteMoeForCausalLM": "experts",
    "PhimoeForCausalLM": "experts",
    "T5ForConditionalGeneration": "an encoder",
    "MambaForCausalLM": "state spaces",
    "Qwen3NextForCausalLM": "linear attention",
}
"""Architectures that are asked for and not there -> what the model has no option for."""


def family_of(config: Values) -> Family:
    """Return the family of a config.json.

    Raises:
        ConfigError: its architecture is none that is known.
    """
    named = config.get("architectures")
    found = str(named[0]) if isinstance(named, list) and named else ""
    for family in FAMILIES:
        if found == family.architecture or (not found and config.get("model_type") == family.model_type):
            return family
    told = found or f"model_type={config.get('model_type')}"
    if found in MISSING:
        raise ConfigError(f"the architecture must be one that can be computed, but {found} needs {MISSING[found]}")
    known = ", ".join(family.architecture for family in FAMILIES)
    own = " whose code comes with its files (trust_remote_code), which is never run" if "auto_map" in config else ""
    raise ConfigError(f"the architecture must be one of {known}, but is {told}{own}")
