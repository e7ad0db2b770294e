"""The tensors that a word of `train.frozen` or `optimizer.rates` names, by their global names alone.

Written from the documentation of the keys. Rates by width: muP, arXiv 2203.03466, Tables 3 and 8.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from trainer.config.schema import ModelConfig, OptimizerConfig

MATRICES, NORMS, BIASES, ATTENTION, MLP, LAYERS, LORA = (
    *("matrices", "norms", "biases", "attention", "mlp", "layers", "lora"),
)


def is_block_matrix(name: str) -> bool:
    """Return whether a tensor maps one hidden state to another."""
    return name.startswith("blocks.") and name.endswith((".weight", ".a", ".b")) and "norm." not in name


def is_named(name: str, word: str) -> bool:
    """Return whether a word names the tensor of a global name."""
    parts = name.split(".")
    if word == MATRICES:
        return is_block_matrix(name)
    if word == NORMS:
        return "norm." in name
    if word == BIASES:
        return parts[-1] == "bias"
    if word in (ATTENTION, MLP):
        return word in parts
    wanted = word.split(".")
    if wanted[0] == LAYERS:
        wanted[0] = "blocks"
    if wanted[0] == "blocks" and parts[0] == "blocks" and len(wanted) > 1:
        first, _, last = wanted[1].partition("-")
        if not int(first) <= int(parts[1]) <= int(last or first):
            return False
        wanted[1] = parts[1]
    return parts[: len(wanted)] == wanted


def frozen_names(names: Iterable[str], words: Collection[str], model: ModelConfig) -> tuple[str, ...]:
    """Return the tensors that are not trained; beside adapters none of the model's own is."""
    has_adapters = model.lora.rank is not None
    return tuple(
        name
        for name in names
        if (has_adapters and f".{LORA}." not in name) or any(is_named(name, word) for word in words)
    )


def rate_factors(
    names: Iterable[str], optimizer: OptimizerConfig, model: ModelConfig
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Return name -> factor of the learning rate, and name -> factor of the weight decay."""
    rates, decays = dict.fromkeys(names, 1.0), dict[str, float]()
    for entry in optimizer.rates:
        word, _, factor = entry.partition(":")
        rates |= {name: float(factor) for name in rates if is_named(name, word.strip())}
    for name in rates:
        decays[name] = 1.0
        if optimizer.mup_base_width is not None and (is_block_matrix(name) or name == "head.weight"):
            rates[name] *= optimizer.mup_base_width / model.hidden_size
            decays[name] = model.hidden_size / optimizer.mup_base_width
    return rates, decays
