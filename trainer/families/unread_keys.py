"""Keys of a config.json that no class of transformers reads, and that are known to be harmless.

Any other key that is not read is refused: it may be what makes the model another one.
"""

from __future__ import annotations

from collections.abc import Mapping

HARMLESS: frozenset[str] = frozenset(
    (
        # How texts are generated, which generation_config.json says today.
        *("max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "temperature", "top_k", "top_p"),
        *("typical_p", "num_beams", "num_beam_groups", "diversity_penalty", "repetition_penalty", "length_penalty"),
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences"),
        *("output_scores", "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id"),
        *("remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens"),
        # The tokenizer, and how the file or the model was made.
        *("tokenizer_class", "model_max_length", "max_sequence_length", "is_llama_config", "_num_labels"),
        *("onnx", "torchscript", "tf_legacy_loss", "use_bfloat16", "_commit_hash", "_flash_attn_2_enabled"),
        *("unsloth_version", "unsloth_fixed", "predict_special_tokens", "n_special"),
        # The length that a scaling began with; where there is no scaling it says nothing.
        "original_max_position_embeddings",
        # A head for classification, which a language model does not have.
        *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
    )
)
"""Keys that change nothing that a model computes, whatever their value."""

USUAL: Mapping[str, tuple[object, ...]] = {
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "lm_head_bias": (False,),
    "use_mrope": (False,),
    "full_attn_mod": (1,),
    "interpolate_factor": (1,),
    "rotary_scaling_factor": (1,),
    "partial_rotary_factor": (1,),
    "rotary": (True,),
    "rope_interleaved": (False,),
    "scale_attn_weights": (True,),
    "hidden_dropout_prob": (0,),
    "attention_probs_dropout_prob": (0,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
}
"""Keys of published files that a family does not know -> values that mean what the family computes anyway.

null always does: it stands for the key that is left out.
"""


def is_harmless(key: str, value: object) -> bool:
    """Return whether a key that nobody reads may be there with this value."""
    return value is None or key in HARMLESS or any(value == usual for usual in USUAL.get(key, ()))
