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
    "num_samples": "n num_return_sequences samples num_completions batch_size best_of",
}
_WORDS = {
    "do_sample sample": {"false": "temperature=0", "true": "temperature=0.8"},
    "greedy": {"true": "temperature=0", "false": "temperature=0.8"},
}
_ABSENT = {
    "num_beams beams beam_size beam_width length_penalty early_stopping": "beams are not searched",
    "repetition_penalty frequency_penalty presence_penalty no_repeat_ngram_size": "tokens are not punished for "
    "having been used",
    "min_p typical_p eta_cutoff": "temperature, top_k and top_p say what is drawn from",
    "min_length min_new_tokens": "a text ends where the model ends it, or at max_tokens",
    "stop stop_sequences stop_strings eos_token_id": "a text ends with an end-of-text token or at max_tokens",
    "file prompt_file input_file sample_input_file": 'the shell reads a file: prompt="$(cat FILE)"',
    "device dtype precision tp tensor_parallel_size layout": "one process samples, on a GPU if there is one",
    "stream interactive chat compile": "texts are printed when they are whole",
}
OTHER_NAMES: dict[str, Meaning] = {
    **{name: Meaning((key,)) for key, names in _SAME.items() for name in names.split()},
    **{name: Meaning(words=words) for names, words in _WORDS.items() for name in names.split()},
    **{name: Meaning(note=note) for names, note in _ABSENT.items() for name in names.split()},
}
"""Name elsewhere -> its counterpart here."""
