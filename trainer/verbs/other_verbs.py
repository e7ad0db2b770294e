"""Names that other trainers give the verbs. Data only."""

from __future__ import annotations

OTHER_VERBS: dict[str, str] = {
    "pretrain pre_train run fit launch start learn training finetune fine_tune sft continue resume restart go "
    "pretrain_gpt main": "train",
    "sample gen inference infer predict complete chat text prompt": "generate",
    "eval validate test benchmark score perplexity ppl lm_eval harness": "evaluate",
    "prepare prepare_data preprocess preprocess_data tokenize tokenise dataset build_data": "data",
    "checkpoints ckpt ls list show verify inspect": "checkpoint",
    "repartition merge split zero_to_fp32 consolidate": "reshard",
    "from_hf import_hf hf_to_trident from_pretrained convert_from_hf load_hf": "import",
    "to_hf export_hf trident_to_hf save_pretrained convert_to_hf convert convert_checkpoint": "export",
    "prove proof certificate certify check_parity verify_parity self_test selftest": "parity",
    "partition stages profile_layers": "balance",
    "autotune search_layout": "plan --search",
    "sweep multirun hpo tune": "train --multirun",
    "estimate estimator memory predict_memory cost budget planner": "plan",
    "check diagnose diagnostics env environment env_report ds_report collect_env preflight health healthcheck "
    "system_check info": "doctor",
    "config cfg show_config print_config": "train --help",
    "monitor follow tail attach live top status dashboard": "watch",
    "list_runs jobs history experiments ps": "runs",
    "diff difference differences cmp versus vs": "compare",
    "migration convert_config import_config from_megatron from_neox from_gpt_neox from_nanotron port": "migrate",
    "html plot plots plotting visualize visualise tensorboard": "report",
    "version": "--version",
    "completion completions install_completion": "--install-completion",
    "usage commands verbs": "--help",
}
"""Names elsewhere -> the words that follow `trident` here."""

NO_VERB: dict[str, str] = {
    "serve deploy push upload": "models are not served or uploaded; `trident export` writes what other programs take",
    "rl dpo ppo grpo rlhf reward": "only pre-training is done here",
}
"""Names elsewhere -> the way things are here, where there is no such verb."""
