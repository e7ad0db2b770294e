"""Other trainers' names for the keys of model, tokenizer and data. Data only; `other_names.py` reads it.

The names are those of Hugging Face's config.json and TrainingArguments, Megatron-LM, GPT-NeoX, DeepSpeed, nanoGPT,
LitGPT, torchtitan and Lightning. Dashes are written as underscores, and a name in a group, such as
`activation_checkpoint.mode`, counts only there.
"""

from __future__ import annotations

SAME_MODEL: dict[str, str] = {
    "model.hidden_size": "n_embd n_embed d_model emb_dim embed_dim embedding_dim embedding_size model_dim "
    "decoder_embed_dim dim width",
    "model.num_layers": "n_layer n_layers num_hidden_layers num_decoder_layers decoder_layers num_blocks n_blocks "
    "layers depth",
    "model.num_attention_heads": "n_head n_heads num_heads num_query_heads attention_heads decoder_attention_heads "
    "heads",
    "model.num_key_value_heads": "n_kv_heads n_kv_head num_kv_heads num_heads_kv n_head_kv kv_heads num_query_groups "
    "n_query_groups",
    "model.head_dim": "kv_channels head_size dim_head d_head d_kv attention_head_size",
    "model.ffn_hidden_size": "intermediate_size n_inner d_ff ffn_dim ffn_size ffn_hidden_dim feed_forward_size mlp_dim "
    "mlp_hidden_size decoder_ffn_dim decoder_ffn_embed_dim",
    "model.seq_length": "block_size n_ctx n_positions ctx_len context_length context_size context_window max_seq_len "
    "max_seq_length max_sequence_length seq_len sequence_length model_max_length max_position_embeddings cutoff_len "
    "encoder_seq_length decoder_seq_length tokens_per_sample",
    "model.vocab_size": "n_vocab vocabulary_size orig_vocab_size",
    "model.vocab_pad_multiple": "make_vocab_size_divisible_by pad_vocab_size_multiple padding_multiple "
    "pad_vocab_to_multiple_of",
    "model.position": "position_embedding_type positional_embedding position_embedding pos_embedding pos_emb pos_embed "
    "pos_encoding positional_encoding position_encoding",
    "model.rope_theta": "rotary_base rotary_emb_base rotary_embedding_base rope_base rope_freq_base",
    "model.rope_dims": "rotary_dim rotary_ndims rotary_dims",
    "model.rope_scaling.factor": "rope_scaling_factor rotary_scaling_factor rotary_seq_len_interpolation_factor "
    "rope_scaling.factor rope_condense_ratio",
    "model.rope_scaling.kind": "rope_scaling.type rope_scaling.rope_type rope_type rope_scaling_type",
    "model.rope_scaling.original_length": "original_max_position_embeddings "
    "rope_scaling.original_max_position_embeddings",
    "model.rope_scaling.low_frequency_factor": "low_freq_factor rope_scaling.low_freq_factor",
    "model.rope_scaling.high_frequency_factor": "high_freq_factor rope_scaling.high_freq_factor",
    "model.local_rope_theta": "rope_local_base_freq",
    "model.norm_weight": "elementwise_affine layer_norm_with_affine layernorm_affine",
    "model.norm_bias": "use_norm_bias layer_norm_bias bias_for_layer_norm",
    "model.qkv_bias": "add_qkv_bias use_qkv_bias attention_qkv_bias",
    "model.attention_output_bias": "attention_dense_bias o_proj_bias attn_out_bias",
    "model.mlp_bias": "use_mlp_bias",
    "model.head_bias": "lm_head_bias embed_out_bias",
    "model.query_key_norm": "qk_layernorm qk_norm use_qk_norm norm_qk use_qk_layernorm",
    "model.attention_scale": "softmax_scale attention_multiplier attn_scale",
    "model.clip_qkv": "attn_clip_qkv qkv_clip",
    "model.layer_pattern": "layer_types attention_types window_attn_skip_freq sliding_window_pattern",
    "model.embedding_scale": "embedding_multiplier scale_embeddings scale_emb embed_scale",
    "model.embedding_norm": "word_embeddings_layernorm embedding_layer_norm",
    "model.residual_scale": "residual_multiplier residual_alpha",
    "model.logit_scale": "output_multiplier_scale",
    "model.final_softcap": "final_logit_softcapping logit_softcapping output_logit_softcapping final_logit_softcap",
    "model.lora.rank": "lora_r lora_rank lora_dim",
    "model.lora.alpha": "lora_alpha",
    "model.lora.targets": "lora_target_modules target_modules lora_target",
    "model.lora.rank_stabilised": "use_rslora rslora",
    "model.gated": "gated_linear_unit glu use_glu is_gated_act gated_mlp",
    "model.norm": "normalization norm_type normalization_type norm_class_name layer_norm_type norm_layer "
    "layernorm_type",
    "model.norm_eps": "layer_norm_epsilon layernorm_epsilon layer_norm_eps layernorm_eps rms_norm_eps rms_norm_epsilon "
    "norm_epsilon",
    "model.activation": "hidden_act hidden_activation activation_function activation_func activation_fn "
    "activation_type mlp_activation act_fn",
    "model.bias": "use_bias add_bias_linear linear_bias",
    "model.tied_embeddings": "tie_word_embeddings tie_embeddings tie_weights weight_tying share_embeddings "
    "share_embeddings_and_output_weights share_input_output_embed share_decoder_input_output_embed",
    "model.sliding_window": "sliding_window_size attention_window local_attention_window window_size",
    "model.dropout": "hidden_dropout hidden_dropout_prob dropout_p dropout_prob dropout_rate drop_rate",
    "model.attention_dropout": "attn_pdrop attn_dropout attention_dropout_prob attention_probs_dropout_prob",
    "model.init_std": "initializer_range init_method_std initializer_std",
    "model.recompute": "gradient_checkpointing activation_checkpointing use_gradient_checkpointing "
    "enable_gradient_checkpointing checkpoint_activations recompute_granularity activations_checkpoint_granularity "
    "activation_checkpoint.mode",
    "model.fused_loss": "cross_entropy_loss_fusion fused_cross_entropy use_fused_cross_entropy "
    "fused_linear_cross_entropy",
    "tokenizer.path": "tokenizer_name_or_path tokenizer_name tokenizer_path tokenizer_dir tokenizer_model "
    "tokenizer_file hf_tokenizer hf_assets_path pretrained_tokenizer",
    "tokenizer.kind": "tokenizer_type tokenizer_class",
    "data.files": "train_file train_files train_data data_files text_files input_file input_files",
    "data.hub_path": "dataset_name dataset_name_or_path hf_dataset",
    "data.hub_name": "dataset_config dataset_config_name dataset_subset",
    "data.hub_split": "dataset_split train_split",
    "data.hub_validation_split": "eval_split valid_split dataset_eval_split validation_split_name",
    "data.validation_files": "valid_data_path valid_data_paths val_data_path val_data_paths validation_file "
    "validation_data val_file val_files eval_file eval_files valid_file input_val_bin valid_data val_bin eval_dataset",
    "data.text_key": "text_column text_column_name text_field dataset_text_field content_key json_keys json_key",
    "data.messages_key": "messages_column messages_field field_messages",
    "data.prompt_key": "prompt_column prompt_field",
    "data.completion_key": "completion_column completion_field response_column response_key",
    "data.chat_template": "chat_template_path chat_template_jinja custom_chat_template",
    "data.packing": "packing_strategy packing_method pack_strategy",
    "data.too_long": "excess_length_strategy",
    "data.validation_fraction": "val_fraction valid_fraction validation_split val_split val_split_fraction "
    "validation_share test_size",
    "data.workers": "preprocessing_num_workers num_proc dataset_num_proc tokenize_workers tokenization_workers",
    "data.dedup": "deduplicate dedupe deduplication",
    "data.test_fraction": "test_split test_fraction test_share",
    "data.cache_dir": "data_cache_path data_cache_dir dataset_cache_dir",
}
"""Key here -> names of the same thing elsewhere."""

DIFFERENT_MODEL: dict[str, tuple[str, str]] = {
    "hidden_dim": ("model.hidden_size model.ffn_hidden_size", "the width of the model, or of its MLP"),
    "mlp_ratio ffn_mult ffn_dim_multiplier multiple_of mlp_expansion expansion_factor": (
        "model.ffn_hidden_size",
        "a size and not a multiple of model.hidden_size",
    ),
    "padded_vocab_size": ("model.vocab_size", "without the padding, which model.vocab_pad_multiple decides"),
    "attention_bias attn_bias use_bias_in_attn_linear": (
        "model.qkv_bias model.attention_output_bias",
        "for the projections before and behind attention",
    ),
    "use_bias_in_norms": ("model.norm_bias", "for all LayerNorms"),
    "rotary_pct rotary_percent rotary_percentage partial_rotary_factor": (
        "model.rope_dims",
        "a number of elements of each head and not a share",
    ),
    "rope_scaling rope_parameters use_rope_scaling": ("model.rope_scaling.kind", "with the other keys beside it"),
    "query_pre_attn_scalar": ("model.attention_scale", "its -1/2th power"),
    "logits_scaling": ("model.logit_scale", "a factor and not a divisor"),
    "gpt_j_residual parallel_residual use_parallel_residual parallel_attn parallel_attention shared_attention_norm "
    "gpt_j_tied": ("model.wiring", "parallel with one norm for both branches, or parallel_two_norms"),
    "apply_residual_connection_post_layernorm do_layer_norm_before post_norm pre_norm norm_placement": (
        "model.wiring",
        "pre, post, output or sandwich",
    ),
    "norm_layer_offset apply_layernorm_1p layernorm_1p zero_centered_gamma": ("model.norm_offset", "1 for 1 + weight"),
    "embd_pdrop resid_pdrop embd_dropout resid_dropout residual_dropout": (
        "model.dropout",
        "one for the embedding and for the outputs of attention and MLP",
    ),
    "init_method output_layer_init_method": (
        "model.init_std",
        "since weights are always drawn from a normal distribution",
    ),
    "model_name model_type model.flavor flavor architecture architectures arch": (
        "model",
        "which takes the name of a file, for example model=gpt2_124m",
    ),
    "model_name_or_path pretrained_model_name_or_path base_model hf_path": (
        "model.path checkpoint.init_from",
        "with model=hf: the one for its config.json and its tokenizer, the other for its weights",
    ),
    "mlp_class_name": ("model.activation", "for example swiglu for LLaMAMLP"),
    "eos_token_id eod_token eod_id eos_id": (
        "tokenizer.eos_token data.eos_id",
        "the text of the token; its id is needed with data=tokens alone",
    ),
    "vocab_file merge_file merges_file": ("tokenizer.path", "a tokenizer.json or a folder with one"),
    "dataset training.dataset": ("data.hub_path data.files", "with data=hub for a data set of the hub, or data=files"),
    "sample_packing use_packing enable_packing packed pack_sequences": (
        "data.packing",
        "cut or best_fit: documents and examples are always packed",
    ),
    "train_data_weights data_weights data_train_weights dataset_weights mixture_weights sampling_weights "
    "data_mix data_mixture data_mixing dataset_mixer mixture blending data_blending probabilities train_weights "
    "per_split_data_args_path data_blend": ("data.blend", "which gives each source a weight and keys of its own"),
    "data_path data_paths data_prefix train_data_path train_data_paths dataset_path data_dir dataset_dir input_bin "
    "memmap_paths data.paths dataset_folder dataset_folders train_bin": (
        "data.files",
        "a list of paths and globs; with data=megatron of prefixes of .bin and .idx, with data=tokens of files of ids",
    ),
    "memmap_dtype effective_memmap_dtype token_size token_size_in_bytes": (
        "data.token_dtype",
        "the type by name, for example uint16 for two bytes",
    ),
    "validation_split_percentage": ("data.validation_fraction", "a share between 0 and 1 and not a percentage"),
    "split splits": ("data.validation_fraction data.hub_split", "a share of the text, or a split of a data set"),
    "max_train_samples": ("data.max_documents", "in documents; data.max_samples counts sequences"),
    "reset_position_ids reset_attention_mask": ("data.mask_documents", "true is both at once"),
    "eod_mask_loss": ("data.boundary_label", "ignore is the same: the label of a document's last token does not count"),
    "prefetch_factor dataloader_prefetch_factor": ("data.prefetch_steps", "in steps and not in batches of a worker"),
    "overfit_batches limit_train_batches": ("data.max_samples", "in sequences and not in batches"),
}
"""Names elsewhere -> the nearest keys here, and what differs."""

WORDS_MODEL: dict[str, dict[str, str]] = {
    "swiglu use_swiglu": {"true": "model.activation=swiglu"},
    "openai_gelu": {"true": "model.activation=gelu_tanh", "false": "model.activation=gelu"},
    "gelu_approximate": {"tanh": "model.activation=gelu_tanh", "none": "model.activation=gelu"},
    "use_rotary_position_embeddings use_rotary rotary use_rope rope": {
        "true": "model.position=rope",
        "false": "model.position=learned",
    },
    "use_rmsnorm rmsnorm rms_norm use_rms_norm": {"true": "model.norm=rmsnorm", "false": "model.norm=layernorm"},
    "disable_bias_linear no_bias": {"true": "model.bias=false", "false": "model.bias=true"},
    "untie_embeddings_and_output_weights untie_embeddings no_weight_tying": {
        "true": "model.tied_embeddings=false",
        "false": "model.tied_embeddings=true",
    },
    "alibi use_alibi": {"true": "model.position=alibi", "false": "model.position=learned"},
    "multi_query": {"true": "model.num_key_value_heads=1", "false": "model.num_key_value_heads=null"},
    "recompute_activations": {"true": "model.recompute=selective", "false": "model.recompute=none"},
    "mock_data": {"true": "data=synthetic"},
}
"""Names elsewhere -> value -> the words to write here. The first value is that of a name without a value."""

ABSENT_MODEL: dict[str, str] = {
    "attn_logit_softcapping attention_softcap attn_softcap": "attention scores are not capped: PyTorch's attention "
    "kernels cannot; model.final_softcap caps the logits",
    "sinks attention_sink attention_sinks num_sink_tokens use_sinks": "attention has no sinks",
    "kv_lora_rank q_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim multi_latent_attention use_mla": "multi-"
    "head latent attention (MLA) is not available",
    "apply_query_key_layer_scaling attention_softmax_in_fp32 fp32_residual_connection scale_attn_weights "
    "scale_attn_by_inverse_layer_idx reorder_and_upcast_attn softmax_in_fp32": "PyTorch's attention decides that",
    "attn_implementation attn_impl attention_impl attention_backend attention_config attention_type "
    "use_flash_attn use_flash_attention use_flash_attention_2 flash_attn flash_attention _attn_implementation "
    "sparse_attention": "PyTorch takes the fastest attention kernel that there is",
    "masked_softmax_fusion no_masked_softmax_fusion bias_gelu_fusion no_bias_gelu_fusion bias_swiglu_fusion "
    "bias_dropout_fusion no_bias_dropout_fusion gradient_accumulation_fusion no_gradient_accumulation_fusion "
    "scaled_upper_triang_masked_softmax_fusion scaled_masked_softmax_fusion rope_fusion apply_rope_fusion "
    "no_rope_fusion persist_layer_norm no_persist_layer_norm transformer_impl use_mcore_models "
    "use_cpu_initialization use_flashattn_swiglu use_te te_columnparallel te_rowparallel te_layernorm_mlp te_mha "
    "use_flash_attn_triton use_flash_attn_v1 use_flash_attn_v2 use_flash_attn_builder "
    "onnx_safe attention_softmax_fusion": "there is no such kernel or way to switch to; runtime.compile and "
    "runtime.liger fuse layers",
    "num_experts num_local_experts num_experts_per_tok n_routed_experts moe_router_topk moe_top_k moe_num_experts "
    "moe_intermediate_size moe_ffn_hidden_size moe_aux_loss_coeff moe_layer_freq moe_grouped_gemm moe_loss_coeff "
    "moe_train_capacity_factor moe_eval_capacity_factor moe_min_capacity create_moe_param_group moe_router_dtype "
    "moe_expert_parallel_size moe_router_load_balancing_type moe_token_dispatcher_type moe_expert_capacity_factor "
    "moe_router_score_function moe_shared_expert_intermediate_size mlp_type topk noisy_gate_policy "
    "router_aux_loss_coef": "mixtures of experts cannot be trained",
    "mtp_num_layers num_nextn_predict_layers": "the model predicts one token",
    "lora_dropout": "adapters have no dropout of their own",
    "use_dora dora": "adapters are those of LoRA alone",
    "load_in_8bit load_in_4bit quantization quantization_config quantize": "weights are not quantised",
    "use_mup mup mup_width_scale": "maximal update parametrisation is not available",
    "bos_token_id pad_token_id bos_token pad_token": "the tokenizer says it",
    "use_cache transformers_version pretraining_tp": "it says nothing about training from scratch",
    "recompute_method recompute_num_layers checkpoint_num_layers activations_checkpoint_num_layers "
    "activations_checkpoint_method partition_activations checkpoint_in_cpu cpu_checkpointing "
    "selective_ac_option distribute_saved_activations": "model.recompute is for all blocks alike",
    "test_data_path test_data_paths test_files": "data.test_fraction keeps a share apart, and `trident evaluate` takes "
    "data of its own",
    "dataloader_num_workers num_workers dataloader_pin_memory pin_memory persistent_workers dataloader_drop_last "
    "dataloader_type": "shards are mapped into memory, and a thread reads data.prefetch_steps ahead",
    "streaming group_by_length data_impl dataset_impl mmap_bin_files no_mmap_bin_files mmap_warmup": "text is read "
    "once, into shards on the disk, which are mapped into memory",
    "assistant_only_loss completion_only_loss train_on_inputs train_on_prompt mask_prompt": "of chats and prompts "
    "(data.records) only the answers count",
    "append_eod add_eos add_eos_token add_bos_token": "an end-of-text token follows every document",
    "shuffle shuffle_seed data_shuffle": "sequences are always shuffled, by train.seed",
    "trust_remote_code hub_token use_auth_token push_to_hub hub_model_id hub_strategy": "no code is loaded from the "
    "hub, and nothing is sent to it",
}
"""Names elsewhere of things that cannot be set here -> how they are here."""
