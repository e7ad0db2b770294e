"""The families that are known. A new one is a file and a line here."""

from __future__ import annotations

from trainer.errors import ConfigError
from trainer.families import (
    bloom,
    cohere,
    falcon,
    gemma1,
    gemma3,
    gpt1,
    gpt2,
    gpt_neo,
    gpt_neox,
    gptj,
    granite,
    llama,
    mistral,
    olmo1,
    olmo2,
    olmo3,
    opt,
    phi,
    phi3,
    qwen2,
    qwen3,
    smollm3,
    stablelm,
)
from trainer.families.family import Family
from trainer.families.fields import Values

FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    mistral.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    gpt2.FAMILY,
    gpt_neox.FAMILY,
    phi3.FAMILY,
    smollm3.FAMILY,
    olmo2.FAMILY,
    olmo3.FAMILY,
    gemma1.FAMILY,
    gemma3.FAMILY,
    phi.FAMILY,
    stablelm.FAMILY,
    falcon.FAMILY,
    olmo1.FAMILY,
    cohere.FAMILY,
    gptj.FAMILY,
    gpt_neo.FAMILY,
    opt.FAMILY,
    gpt1.FAMILY,
    bloom.FAMILY,
    granite.FAMILY,
)
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
