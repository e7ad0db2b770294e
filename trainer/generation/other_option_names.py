"""Names that other generators give the keys of `trident generate`. Data only."""

from __future__ import annotations

from trainer.config.other_names import Meaning

_SAME = {
    "checkpoint": "ckpt ckpt_path ckpt_dir checkpoint_path checkpoint_dir model model_path model_name_or_path run "
    "run_dir out_dir load path from resume",
    "prompt": "start text input inputs input_text prefix context query",
    "max_tokens": "max_new_tokens max_length length num_tokens n_predict max_gen_len out_seq_length "
    "tokens_to_generate maximum_tokens max_gen_toks",
    "temperature": "temp t",
    "top_k": "topk k",
    "top_p": "topp p nucleus",
    "seed": "random_seed rng_seed",
    "num_samples": "n num_return_sequences samples num_completions best_of",
    "prompts": "file prompt_file prompts_file input_file sample_input_file",
    "chat": "apply_chat_template chat_template",
    "repetition_penalty": "repeat_penalty rep_penalty",
    "min_p": "minp",
    "stop": "stop_sequences stop_strings stop_words",
    "eos_ids": "eos_token_id eos_id eos_token_ids stop_token_ids",
    "batch_size": "max_batch_size eval_batch_size max_num_seqs",
    "output": "out output_file out_file genfile sample_output_file",
    "layout.tensor_parallel_size": "tp tensor_parallel_size tensor_model_parallel_size",
    "layout.pipeline_parallel_size": "pp pipeline_parallel_size pipeline_model_parallel_size",
    "runtime.device": "device",
}
_WORDS = {
    "do_sample sample": {"false": "temperature=0", "true": "temperature=0.8"},
    "greedy": {"true": "temperature=0", "false": "temperature=0.8"},
}
_ABSENT = {
    "num_beams beams beam_size beam_width length_penalty early_stopping": "beams are not searched",
    "frequency_penalty presence_penalty no_repeat_ngram_size": "repetition_penalty punishes tokens that were used",
    "typical_p eta_cutoff": "temperature, top_k, top_p and min_p say what is drawn from",
    "min_length min_new_tokens": "a text ends where the model ends it, or at max_tokens",
    "dtype precision": "weights are those of the checkpoint, in fp32",
    "stream": "a text is printed as its tokens come",
    "interactive": "a prompt is given with the command",
    "compile": "lengths change with every token",
}
OTHER_NAMES: dict[str, Meaning] = {
    **{name: Meaning((key,)) for key, names in _SAME.items() for name in names.split()},
    **{name: Meaning(words=words) for names, words in _WORDS.items() for name in names.split()},
    **{name: Meaning(note=note) for names, note in _ABSENT.items() for name in names.split()},
}
"""Name elsewhere -> its counterpart here."""
