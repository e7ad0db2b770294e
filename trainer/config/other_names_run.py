"""Other trainers' names for the keys of a run: layout to launch. Data only; `other_names.py` reads it.

The names are written as in `other_names_model.py`.
"""

from __future__ import annotations

SAME_RUN: dict[str, str] = {
    "train.epochs": "num_epochs num_train_epochs n_epochs train_epochs",
    "layout.tensor_parallel_size": "tp tp_size tp_degree tensor_parallel tensor_parallel_degree "
    "tensor_model_parallel_size model_parallel model_parallel_size mp_size autotp_size",
    "layout.pipeline_parallel_size": "pp pp_size pp_degree pipeline_parallel pipeline_parallel_degree "
    "pipeline_model_parallel_size pipe_parallel_size num_stages pipeline_stages",
    "layout.data_parallel_size": "dp dp_size dp_degree data_parallel data_parallel_degree "
    "data_parallel_replicate_degree num_replicas",
    "layout.pipeline_schedule": "pp_schedule pipeline_parallel_schedule pipeline_schedule_type",
    "zero.stage": "zero_stage zero_level zero_optimization.stage",
    "zero.offload": "offload_optimizer offload_optimizer_device offload_optimizer.device optimizer_offload "
    "optimizer_cpu_offload cpu_offload zero_optimization.cpu_offload cpu_optimizer",
    "zero.nvme_path": "offload_nvme_path nvme_offload_dir",
    "zero.overlap_comm": "overlap_grad_reduce overlap_grad_sync delay_grad_reduce",
    "precision.dtype": "torch_dtype mixed_precision mixed_precision_param params_dtype train_dtype compute_dtype",
    "precision.loss_scale_window": "loss_scaling_window",
    "batch.global_batch_size": "train_batch_size gbs global_bs",
    "batch.micro_batch_size": "per_device_train_batch_size per_gpu_train_batch_size per_device_batch_size "
    "per_gpu_batch_size train_micro_batch_size_per_gpu micro_batch_size_per_gpu "
    "train_micro_batch_size device_batch_size device_train_batch_size "
    "device_train_microbatch_size local_batch_size training.batch_size mbs micro_bs "
    "micro_batch microbatch_size",
    "optimizer.lr": "learning_rate max_lr base_lr peak_lr max_learning_rate peak_learning_rate",
    "optimizer.kind": "optim optimizer_name optimizer_type optimizer.name optimizer.type optim_type",
    "optimizer.ema_decay": "use_ema ema_rate ema_beta",
    "optimizer.momentum": "muon_momentum muon_beta",
    "optimizer.rates": "lr_mult lr_multipliers param_group_lrs",
    "optimizer.mup_base_width": "mup_base_dim mup_base_hidden_size mup_dim_model_base dim_model_base",
    "optimizer.beta1": "adam_beta1 beta_1",
    "optimizer.beta2": "adam_beta2 beta_2",
    "optimizer.eps": "adam_eps adam_epsilon epsilon",
    "optimizer.weight_decay": "wd adam_weight_decay l2",
    "optimizer.grad_clip": "clip_grad clip_grad_norm gradient_clipping gradient_clip gradient_clip_val "
    "gradient_clip_norm max_grad_norm max_norm grad_clip_norm clip_norm",
    "schedule.kind": "lr_scheduler_type lr_scheduler lr_scheduler_name scheduler scheduler_type scheduler.type "
    "lr_decay_style lr_decay_type lr_schedule lr_scheduler.decay_type",
    "schedule.warmup_steps": "lr_warmup_steps lr_warmup_iters num_warmup_steps warmup_iters warmup_num_steps "
    "warmup_updates",
    "schedule.min_lr_ratio": "min_lr_rate min_lr_factor lr_min_ratio min_ratio cos_min_ratio alpha_f",
    "schedule.decay_steps": "lr_decay_iters lr_decay_steps decay_iters num_decay_steps lr_wsd_decay_iters "
    "total_num_steps",
    "train.steps": "max_steps train_iters train_steps max_iters num_steps num_train_steps max_train_steps total_steps "
    "training_steps num_training_steps total_training_steps num_iterations iterations total_iters max_update",
    "train.seed": "random_seed rng_seed manual_seed global_seed seed_everything data_seed dataset_seed",
    "train.frozen": "freeze freeze_layers freeze_modules freeze_parameters frozen_layers frozen_parameters",
    "train.log_every": "log_interval logging_steps logging_interval log_every_n_steps log_every_steps log_freq "
    "log_frequency steps_per_print print_every print_interval report_interval",
    "train.eval_every": "eval_interval eval_steps eval_freq eval_every_n_steps evaluation_interval val_interval "
    "val_every val_freq validation_interval validation.freq val_check_interval eval.interval valid_interval",
    "train.eval_batches": "eval_iters eval_iterations limit_val_batches val_batches val_steps validation.steps "
    "eval.max_iters max_eval_batches num_eval_batches",
    "checkpoint.every": "save_interval save_every save_steps save_freq save_frequency save_every_n_steps "
    "checkpoint_every checkpoint_interval checkpoint_freq checkpoint_factor checkpoint.interval checkpointing_steps "
    "ckpt_interval ckpt_every every_n_train_steps",
    "checkpoint.keep": "save_total_limit keep_last_n_checkpoints keep_last_n keep_last keep_latest_k max_to_keep "
    "num_checkpoints_to_keep save_num_checkpoints_to_keep checkpoints_to_keep",
    "checkpoint.asynchronous": "async_save async_checkpoint async_mode use_async_checkpoint",
    "checkpoint.save_final": "save_final_model save_last save_at_end",
    "checkpoint.resume": "resume_from_checkpoint resume_from resume_path resume_dir restore_from ckpt_path load "
    "load_dir load_path load_checkpoint checkpoint_path",
    "run_dir": "output_dir output_path out_dir default_root_dir dump_folder work_dir workdir experiment_dir exp_dir",
    "name": "run_name experiment_name exp_name job_name",
    "logging.wandb_name": "wandb_run_name wandb_exp_name wandb.name",
    "logging.wandb_run_id": "run_id wandb_id wandb.id",
    "logging.wandb_job_type": "job_type wandb.job_type",
    "logging.wandb_notes": "notes wandb.notes",
    "logging.wandb": "wandb use_wandb wandb_log enable_wandb wandb_mode wandb.mode wandb.enabled",
    "logging.wandb_project": "wandb_project_name wandb.project project project_name",
    "logging.wandb_entity": "wandb_team wandb.entity entity",
    "logging.wandb_group": "wandb_group_name wandb_run_group wandb.group",
    "logging.wandb_tags": "wandb.tags tags",
    "logging.tensorboard": "use_tensorboard enable_tensorboard tensorboard.enabled",
    "runtime.device": "accelerator device_type",
    "runtime.timeout_s": "ddp_timeout dist_timeout nccl_timeout ddp_timeout_seconds init_timeout_seconds "
    "train_timeout_seconds",
    "runtime.compile": "torch_compile use_torch_compile compile_model model_compile",
    "runtime.self_test": "sanity_check run_sanity_check self_check",
    "runtime.liger": "use_liger use_liger_kernel",
    "runtime.profile": "profiler enable_profiling use_pytorch_profiler",
    "runtime.profile_first_step": "profile_step_start",
    "runtime.threads_per_rank": "num_threads omp_num_threads torch_num_threads",
    "launch.master_port": "main_process_port rdzv_port",
}
"""Key here -> names of the same thing elsewhere."""

DIFFERENT_RUN: dict[str, tuple[str, str]] = {
    "rampup_batch_size batch_size_rampup": (
        "batch.rampup_sizes batch.rampup_steps batch.rampup_tokens",
        "sizes, and the steps or tokens with which each of them ends",
    ),
    "world_size num_gpus n_gpus n_gpu ngpus gpus num_processes nproc nproc_per_node num_devices devices "
    "gpus_per_node": ("layout.data_parallel_size", "since ranks = pipeline x tensor x data parallel size"),
    "fsdp fsdp_config use_fsdp use_torch_fsdp2 data_parallel_shard_degree strategy sharding_strategy": (
        "zero.stage",
        "of which 3 shards parameters as FSDP does",
    ),
    "pipe_partition_method pp_partition_method partition_method pipeline_parallel_split_points "
    "pipeline_model_parallel_layout decoder_first_pipeline_num_layers decoder_last_pipeline_num_layers": (
        "layout.stage_boundaries",
        "the first block of each further stage; without it layers are partitioned by cost",
    ),
    "offload_param offload_param_device offload_param.device param_offload cpu_offload_params": (
        "zero.offload_parameters",
        "true or false, with zero=stage3_offload",
    ),
    "initial_loss_scale": ("precision.initial_scale_power", "a power of two"),
    "amp use_amp amp.enabled half_precision": ("precision", "which is bf16, fp16 or fp32"),
    "batch_size": (
        "batch.global_batch_size batch.micro_batch_size",
        "of a step over all ranks, or of one rank at once",
    ),
    "total_batch_size batch_size_tokens global_batch_tokens total_batch_size_tokens": (
        "batch.global_batch_size",
        "in sequences and not in tokens",
    ),
    "gradient_accumulation_steps accumulate_grad_batches gradient_accumulation gradient_accumulation_fraction "
    "grad_accum_steps grad_acc_steps grad_accum gas accumulation_steps num_micro_batches num_microbatches "
    "micro_batches update_freq": (
        "batch.global_batch_size",
        "which is batch.micro_batch_size x accumulation steps x replicas",
    ),
    "per_device_eval_batch_size eval_batch_size val_batch_size": (
        "train.eval_batches",
        "since evaluation reads batches as large as those of training",
    ),
    "betas adam_betas optimizer_betas": ("optimizer.beta1 optimizer.beta2", "a key each"),
    "fused fused_adam use_fused_adam": ("optimizer.implementation", "auto, torch or deepspeed_cpu"),
    "warmup warmup_ratio warmup_fraction warmup_proportion warmup_percent lr_warmup_fraction": (
        "schedule.warmup_steps",
        "in steps and not a share of the run",
    ),
    "warmup_samples lr_warmup_samples": ("schedule.warmup_steps", "in steps: samples / batch.global_batch_size"),
    "warmup_tokens lr_warmup_tokens": (
        "schedule.warmup_steps",
        "in steps: tokens / (batch.global_batch_size x model.seq_length)",
    ),
    "warmup_epochs": ("schedule.warmup_steps", "in steps and not in epochs"),
    "min_lr min_learning_rate lr_min end_lr eta_min final_lr learning_rate_min": (
        "schedule.min_lr_ratio",
        "a share of optimizer.lr and not a rate: min_lr / lr",
    ),
    "lr_decay_samples lr_wsd_decay_samples": (
        "schedule.decay_steps",
        "in steps: samples / batch.global_batch_size",
    ),
    "decay_ratio lr_decay_fraction lr_decay_ratio decay_fraction cooldown_fraction": (
        "schedule.decay_steps",
        "in steps and not a share of the run",
    ),
    "train_samples total_samples num_samples": ("train.steps", "in steps: samples / batch.global_batch_size"),
    "tokens train_tokens total_tokens max_train_tokens num_tokens train.max_tokens token_budget": (
        "train.steps",
        "in steps: tokens / (batch.global_batch_size x model.seq_length)",
    ),
    "check_val_every_n_epoch eval_strategy evaluation_strategy do_eval": (
        "train.eval_every",
        "the steps between evaluations",
    ),
    "save_strategy always_save_checkpoint": ("checkpoint.every", "the steps between saves"),
    "save_top_k save_best load_best_model_at_end": ("checkpoint.keep", "of which the newest are kept, not the best"),
    "save save_dir checkpoint_dir ckpt_dir dirpath checkpoint.folder": (
        "run_dir",
        "in which checkpoints/ is made",
    ),
    "tensorboard_dir tensorboard_log_dir save_tb_folder tb_dir log_dir logging_dir": (
        "run_dir",
        "in which all logs are written",
    ),
    "finetune no_load_optim no_load_rng initial_checkpoint_dir initial_load_path load_weights_only": (
        "checkpoint.init_from",
        "a checkpoint of which only the weights are taken, from step 0 on",
    ),
    "auto_resume": ("checkpoint.resume", "auto, never or the path of a checkpoint"),
    "log_level verbosity verbose enable_progress_bar progress_bar": (
        "logging.console",
        "auto, plain or quiet",
    ),
    "distributed_timeout_minutes": ("runtime.timeout_s", "in seconds and not in minutes"),
    "profile_step_end": ("runtime.profile_steps", "a number of steps"),
    "check_for_nan_in_loss_and_grad check_for_nan_in_loss detect_anomaly": (
        "train.max_skipped_in_row",
        "the steps in a row that may be not finite",
    ),
}
"""Names elsewhere -> the nearest keys here, and what differs."""

WORDS_RUN: dict[str, dict[str, str]] = {
    "bf16 bf16.enabled bfloat16.enabled bfloat16 use_bf16": {"true": "precision=bf16", "false": "precision=fp32"},
    "fp16 fp16.enabled half use_fp16 float16": {"true": "precision=fp16", "false": "precision=fp32"},
    "fp32 full_precision": {"true": "precision=fp32"},
    "use_distributed_optimizer": {"true": "zero=stage1", "false": "zero=stage0"},
    "decay_lr": {"true": "schedule=cosine", "false": "schedule=constant"},
    "use_cpu no_cuda": {"true": "runtime.device=cpu", "false": "runtime.device=cuda"},
    "disable_tqdm": {"true": "logging.console=plain", "false": "logging.console=auto"},
    "report_to logger_name logger": {
        "wandb": "logging.wandb=online",
        "tensorboard": "logging.tensorboard=true",
        "csv": "logging.csv=true",
        "none": "logging=local",
        "all": "logging=all",
    },
    "overwrite_output_dir": {"true": "checkpoint.resume=never", "false": "checkpoint.resume=auto"},
}
"""Names elsewhere -> value -> the words to write here. The first value is that of a name without a value."""

ABSENT_RUN: dict[str, str] = {
    "num_nodes nnodes n_nodes num_machines node_rank machine_rank": "the launcher says it, see docs/clusters.md",
    "master_addr main_process_ip rdzv_endpoint": "the launcher says it, or MASTER_ADDR",
    "context_parallel_size context_parallel_degree cp cp_size sequence_parallel_size ulysses_sequence_parallel_size "
    "ulysses_degree": "a sequence is not sharded over ranks in attention; layout.sequence_parallel shards norms in the "
    "tensor-parallel group",
    "virtual_pipeline_model_parallel_size num_layers_per_virtual_pipeline_stage num_virtual_stages_per_rank "
    "overlap_p2p_comm": "stages are not interleaved; layout.pipeline_schedule=dualpipev is the other schedule",
    "expert_model_parallel_size expert_parallel_size expert_parallel_degree expert_tensor_parallel_size ep ep_size": (
        "mixtures of experts cannot be trained"
    ),
    "tp_comm_overlap enable_async_tensor_parallel async_tensor_model_parallel_allreduce enable_loss_parallel "
    "loss_parallel disable_loss_parallel": "ranks of a tensor-parallel group talk in one way",
    "ddp_find_unused_parameters find_unused_parameters ddp_bucket_cap_mb ddp_bucket_size sync_batchnorm "
    "use_distributed_sampler align_grad_reduce ddp_impl fp32_allreduce prescale_gradients "
    "gradient_predivide_factor": "data-parallel ranks are DeepSpeed's; zero.reduce_bucket_size is the "
    "size of a collective",
    "allgather_bucket_size stage3_prefetch_bucket_size": "zero.reduce_bucket_size is used for it too",
    "stage3_param_persistence_threshold stage3_max_live_parameters stage3_max_reuse_distance sub_group_size "
    "contiguous_gradients round_robin_gradients allgather_partitions reduce_scatter overlap_param_gather "
    "stage3_gather_16bit_weights_on_model_save zero_hpz_partition_size zero_quantized_weights "
    "zero_quantized_gradients fsdp_reshard_after_forward": "Trident sets DeepSpeed's other switches itself",
    "deepspeed deepspeed_config ds_config deepspeed_config_file deepspeed_mpi": "the DeepSpeed config is made from "
    "zero.*, precision.*, batch.* and optimizer.*",
    "tf32 allow_tf32 float32_matmul_precision": "PyTorch's setting is left as it is",
    "fp8 fp8_format fp8_recipe fp8_hybrid enable_fp8 float8 enable_fp8_linear": "precision is fp32, bf16 or fp16",
    "loss_scale min_loss_scale min_scale hysteresis loss_scaling grad_scaler": "fp16's loss scale finds itself; "
    "precision.initial_scale_power is where it begins",
    "accumulate_allreduce_grads_in_fp32 grad_accum_dtype grad_reduce_in_fp32 grad_reduce_in_bf16 master_weights "
    "mixed_precision_reduce communication_data_type": "gradients and master weights are always fp32",
    "nesterov sgd_momentum amsgrad": "the optimizers are adamw, lion and muon; their moments "
    "decay by beta1, beta2 and momentum",
    "gradient_clip_algorithm clip_grad_value": "gradients are clipped by their global L2 norm",
    "start_weight_decay end_weight_decay weight_decay_incr_style": "weight decay is the same in all steps",
    "lr_scheduler_kwargs lr_warmup_init warmup_min_lr warmup_init_lr warmup_type lr_wsd_decay_style "
    "override_opt_param_scheduler use_checkpoint_opt_param_scheduler": "the schedule is schedule.kind with "
    "warmup_steps, decay_steps and min_lr_ratio",
    "label_smoothing label_smoothing_factor z_loss z_loss_weight": "the loss is plain cross entropy",
    "neftune_noise_alpha": "inputs are used as they are",
    "max_time max_duration exit_interval exit_duration_in_mins train_time_limit": "a run does train.steps; a signal "
    "saves and stops it",
    "skip_train do_train do_predict eval_only fast_dev_run num_sanity_val_steps eval_on_start "
    "initial_validation": "`trident train` always trains",
    "no_save_optim no_save_rng save_only_model ckpt_format dist_ckpt_format dist_ckpt_strictness universal_checkpoint "
    "use_checkpoint_args no_use_tokenizer_model_from_checkpoint_args reset_progress ckpt_fully_parallel_save "
    "export_dtype last_save_model_only save_safetensors use_dist_ckpt": "checkpoints are written and read whole",
    "log_throughput log_timers_to_tensorboard timing_log_level log_params_norm log_num_zeros_in_grad "
    "log_grad_norm log_grad_pct_zeros log_param_norm log_optimizer_states comms_logger memory_breakdown dump_state "
    "synchronize_each_layer wall_clock_breakdown include_tokens_per_second include_num_input_tokens_seen "
    "flops_profiler": "speed, memory and norms are measured in every row of metrics",
    "distributed_backend dist_backend ddp_backend backend": "ranks talk through NCCL on GPUs and gloo on CPUs",
    "deterministic determinism deterministic_mode use_deterministic_algorithms full_determinism benchmark "
    "cudnn_benchmark": "there is no switch for it; data order and initial weights follow from train.seed",
    "manual_gc manual_gc_interval empty_unused_memory_level": "memory is given back at set times",
    "remove_unused_columns prediction_loss_only metric_for_best_model greater_is_better callbacks "
    "early_stopping_patience": "there is nothing like it in a pre-training run",
}
"""Names elsewhere of things that cannot be set here -> how they are here."""
