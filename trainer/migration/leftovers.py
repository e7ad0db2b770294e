"""Settings that no trainer's own file has read: found in the tables of other trainers' names, or told why not."""

from __future__ import annotations

from trainer.config.keys import GROUPS, KEYS, coerce
from trainer.config.other_names import Meaning, known_elsewhere, value_here
from trainer.config.written import plain
from trainer.errors import ConfigError
from trainer.migration.draft import Draft, Why
from trainer.migration.foreign import Setting, Unresolved, shown

_OFF = (None, False, 0, "", "none", "None", "null", "false", "False", "0")
_OFF_AT_ONE = ("parallel_size", "num_experts", "virtual_stages")
"""Ends of the names of sizes that do nothing at 1."""
_UNSUPPORTED_NAMES = (
    "num_experts moe_num_experts num_moe_experts moe_router_topk moe_top_k moe_grouped_gemm moe_layer_freq "
    "moe_config multi_latent_attention kv_lora_rank q_lora_rank context_parallel_size context_parallel_degree cp "
    "expert_model_parallel_size expert_parallel_size expert_tensor_parallel_size label_smoothing z_loss "
    "z_loss_enabled z_loss_coefficient mtp_num_layers attn_logit_softcapping sinks attention_sinks fp8 fp8_format "
    "fp8_hybrid fp8_recipe use_dora lora_dropout load_in_8bit load_in_4bit quantization start_weight_decay "
    "end_weight_decay weight_decay_incr_style neftune_noise_alpha amsgrad sgd_momentum "
    "virtual_pipeline_model_parallel_size num_layers_per_virtual_pipeline_stage apply_query_key_layer_scaling "
    "fp32_residual_connection train_label_data_paths fim_rate fim_spm_rate curriculum_learning "
    "curriculum_learning_legacy random_ltd rotary_interleaved lr_warmup_init decoupled_lr decoupled_min_lr "
    "spectral_mup compression_training progressive_layer_drop sparse_attention"
)
"""Names of things whose absence changes what is trained."""
_ENVIRONMENT_NAMES = (
    "num_nodes nnodes n_nodes num_machines node_rank machine_rank master_addr master_port main_process_ip "
    "rdzv_endpoint rdzv_backend rdzv_id nproc_per_node num_gpus hostfile include exclude launcher launcher_args "
    "deepspeed_slurm deepspeed_mpi local_rank rank world_size no_ssh_check force_multi comment account "
    "user_script detect_nvlink_pairs distributed_backend dist_backend backend git_hash wandb_host "
    "kill_switch_path exit_duration_in_mins exit_interval max_time train_time_limit autoresume adlr_autoresume "
    "adlr_autoresume_interval log_dir config_files s3_path s3_chunk_size s3_upload"
)
"""Names of things that belong to the launcher, the cluster or the shell."""

_UNSUPPORTED, _ENVIRONMENT = (frozenset(names.split()) for names in (_UNSUPPORTED_NAMES, _ENVIRONMENT_NAMES))

_FILES = ("data.files", "data.validation_files")
"""Keys that follow from several settings at once."""


def settle_leftovers(draft: Draft) -> None:
    """Turn every setting that nobody has read into a key, or into a line that says why it has none."""
    for setting in draft.left():
        draft.used.add(setting.name)
        _settle(draft, setting)


def _settle(draft: Draft, setting: Setting) -> None:
    leaf = setting.name.rpartition(".")[2]
    if setting.is_unresolved:
        reason = "its value is not known without running the script"
        draft.drop(setting.name, Why.environment if leaf in _ENVIRONMENT else Why.by_hand, reason)
        return
    meaning = known_elsewhere(setting.name, with_group=True) or known_elsewhere(setting.name, with_group=False)
    if leaf in _ENVIRONMENT:
        draft.drop(setting.name, Why.environment, _note(meaning) or "the launcher, the cluster or the shell says it")
    elif _is_off(setting, leaf) and (meaning is None or not meaning.keys):
        draft.drop(setting.name, Why.no_effect, "it is off")
    elif leaf in _UNSUPPORTED:
        draft.drop(setting.name, Why.unsupported, _note(meaning) or "it is not available")
    elif meaning is None:
        _same_name(draft, setting, leaf)
    elif meaning.words:
        _words(draft, setting, meaning)
    elif not meaning.keys:
        draft.drop(setting.name, Why.no_effect, meaning.note)
    elif meaning.note or len(meaning.keys) > 1:
        draft.drop(setting.name, Why.by_hand, f"the nearest here is {' or '.join(meaning.keys)}, {meaning.note}")
    else:
        _put(draft, setting, meaning.keys[0], setting.value)


def _note(meaning: Meaning | None) -> str:
    return meaning.note if meaning is not None and not meaning.keys else ""


def _is_off(setting: Setting, leaf: str) -> bool:
    value = setting.value
    if isinstance(value, (list, dict)):
        return not value
    return value in _OFF or (str(value) == "1" and leaf.endswith(_OFF_AT_ONE))


def _same_name(draft: Draft, setting: Setting, leaf: str) -> None:
    """Settle a name that no table has: a key may be called the same."""
    keys = [key for key in KEYS if key == setting.name or key.rpartition(".")[2] == leaf]
    if len(keys) == 1 and "." not in setting.name:
        _put(draft, setting, keys[0], setting.value)
    else:
        draft.drop(setting.name, Why.unknown, "no table of other trainers' names has it")


def _words(draft: Draft, setting: Setting, meaning: Meaning) -> None:
    value = str(setting.value).lower()
    words = meaning.words.get(value)
    if words is None:
        draft.drop(setting.name, Why.by_hand, f"write {' or '.join(meaning.words.values())}")
        return
    name, _, word = words.partition("=")
    if name in GROUPS:
        # A group's file is named after the word that its first key has, or is not written here at all.
        keys = {"precision": "precision.dtype", "schedule": "schedule.kind", "data": "data.source"}
        if name not in keys:
            draft.drop(setting.name, Why.by_hand, f"write {words}")
            return
        name = keys[name]
    _put(draft, setting, name, None if word == "null" else word)


def _put(draft: Draft, setting: Setting, key: str, value: object) -> None:
    """Set a key that nothing has set yet, from another trainer's word for its value."""
    if key in _FILES:
        draft.drop(setting.name, Why.by_hand, f"it is {key}")
        return
    if key in draft.entries:
        _already(draft, setting, key, value)
        return
    if isinstance(value, Unresolved):
        draft.drop(setting.name, Why.by_hand, f"it is {key}, but its value is not known")
        return
    translated = value_here(key, str(value)) if isinstance(value, (str, bool, int, float)) else ""
    try:
        draft.put(key, translated or value, setting.name)
    except ConfigError as error:
        draft.drop(setting.name, Why.by_hand, f"it is {key}, but {shown(value)} is no value of it: {error.problems[0]}")


def _already(draft: Draft, setting: Setting, key: str, value: object) -> None:
    """Note a second setting for a key: it says the same, or the user must choose."""
    said = draft.entries[key]
    text = value_here(key, str(value)) or str(value)
    try:
        is_same = plain(coerce(key, KEYS[key], text)) == said.value
    except ConfigError:
        is_same = False
    if is_same:
        draft.drop(setting.name, Why.no_effect, f"{key} is set by {said.origin}")
    else:
        draft.drop(setting.name, Why.by_hand, f"{key} is {shown(said.value)}, as {said.origin} says")
