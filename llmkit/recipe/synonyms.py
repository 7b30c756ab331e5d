"""Find the key that was meant by another library's word for it, or by a misspelling."""

import json
import re
import shlex
from collections.abc import Sequence

from llmkit.errors import scrub
from llmkit.recipe import upstream
from llmkit.recipe.keys import key_type, known_keys
from llmkit.recipe.toml import Key, dotted, split_key
from llmkit.recipe.types import Type, nearest

# Our keys, each with the words that others use for it. A word with a table before it counts in that table only. Of
# several keys for one word the first that the task has is taken. What begins with two dashes is an option.
_WORDS = {
    "trainer.learning_rate": "lr base_lr max_lr peak_lr init_lr step_size",
    "trainer.num_train_epochs": "epoch epochs n_epochs num_epochs max_epochs nb_epochs train_epochs total_epochs",
    "trainer.max_steps": "step steps n_steps num_steps max_iters max_iter iterations num_train_steps train_steps "
    "max_train_steps training_steps total_steps",
    "trainer.per_device_train_batch_size": "bs bsz batch batch_size train_batch_size train_bs train_batch "
    "micro_batch_size per_device_batch_size mini_batch_size",
    "trainer.per_device_eval_batch_size": "eval_bs eval_batch_size eval_batch val_batch_size valid_batch_size "
    "test_batch_size",
    "trainer.gradient_accumulation_steps": "accum grad_accum grad_acc gradient_accumulation accumulation_steps "
    "accumulate_grad_batches grad_accum_steps accumulation accum_steps update_freq",
    "trainer.warmup_steps": "warmup warm_up warmup_iters num_warmup_steps warmup_updates warmup_ratio "
    "warmup_proportion",
    "trainer.weight_decay": "wd decay l2 weight_decay_rate",
    "trainer.max_grad_norm": "clip grad_clip clip_grad grad_norm clip_norm gradient_clip gradient_clipping "
    "gradient_clip_val clip_grad_norm max_norm clipping",
    "trainer.lr_scheduler_type": "scheduler lr_scheduler schedule lr_schedule scheduler_type",
    "trainer.optim": "optimizer optimiser opt optimizer_type",
    "trainer.adam_beta1": "beta1",
    "trainer.adam_beta2": "beta2",
    "trainer.adam_epsilon": "eps epsilon adam_eps",
    "trainer.label_smoothing_factor": "label_smoothing smoothing",
    "trainer.seed": "seed random_seed rng_seed random_state manual_seed",
    "trainer.logging_steps": "log_steps log_every log_interval logging_interval log_every_n_steps report_every",
    "trainer.eval_steps": "eval_every eval_interval evaluation_steps val_check_interval eval_freq",
    "trainer.eval_strategy": "evaluation_strategy eval_schedule",
    "trainer.save_steps": "save_every save_interval checkpoint_steps checkpoint_every checkpoint_interval save_freq",
    "trainer.dataloader_num_workers": "workers num_workers n_workers data_workers",
    "trainer.gradient_checkpointing": "grad_checkpointing",
    "trainer.torch_compile": "compile",
    "trainer.use_cpu": "cpu no_cuda",
    "trainer.report_to": "logger log_to",
    "model.name": "model model_name model_path model_id model_name_or_path pretrained_model "
    "pretrained_model_name_or_path base_model checkpoint backbone model.path model.id model.checkpoint "
    "model.base model.model model.pretrained",
    "model.attn_implementation": "attention attn",
    "model.load_in_4bit": "4bit qlora",
    "model.generator.name": "generator",
    "tokenizer.name": "tokenizer tokenizer_name tokenizer_path tokenizer_name_or_path tokenizer.path tokenizer.id",
    "tokenizer.vocab_size": "vocab",
    "data.path": "data path file files train_file train_files data_path data_file data_dir dataset datasets "
    "dataset_name dataset_path dataset_id train train_data training_data training_file train_path input_file corpus",
    "data.name": "dataset_config dataset_config_name subset config_name data.config data.subset",
    "data.validation_split": "eval_split val_split_name validation_set",
    "data.validation_fraction": "test_size val_size valid_size eval_size validation_size dev_size val_split "
    "validation_ratio val_ratio test_split holdout hold_out_fraction val_fraction eval_fraction test_fraction",
    "data.text_column": "text text_col text_field text_column_name dataset_text_field sentence_column content_column "
    "data.input_column",
    "data.text_pair_column": "text_pair text_b sentence2_column pair_column",
    "data.label_column": "label label_col label_field label_column_name target_col labels_column data.labels",
    "data.label_names": "class_names label_list",
    "data.tokens_column": "tokens words_column words",
    "data.tags_column": "tags ner_tags tag_column",
    "data.source_column": "source source_col document_column article_column",
    "data.target_column": "target summary_column summary",
    "data.max_length": "max_len maxlen max_seq_length max_seq_len max_sequence_length seq_len seq_length "
    "sequence_length max_source_length model_max_length max_input_length cutoff_len",
    "data.block_size": "max_len maxlen max_seq_length max_seq_len max_sequence_length seq_len seq_length "
    "sequence_length context_length ctx_len context_size n_ctx max_length",
    "data.pack": "packing sample_packing",
    "data.max_target_length": "target_length max_output_length",
    "data.max_train_samples": "num_train_samples n_train train_samples max_samples limit",
    "data.max_eval_samples": "num_eval_samples n_eval eval_samples",
    "data.delimiter": "sep separator delim field_separator csv_separator",
    "data.encoding": "charset",
    "data.source_prefix": "prefix task_prefix",
    "data.stride": "doc_stride overlap",
    "data.mlm_probability": "mask_prob mlm_prob masking_probability mask_probability",
    "data.class_weights": "class_weight",
    "lora.r": "lora rank lora_rank lora_r lora.dim lora.size use_lora use_peft peft",
    "lora.lora_alpha": "alpha lora.scale lora.scaling",
    "lora.lora_dropout": "lora.dropout",
    "lora.target_modules": "lora_target_modules lora_target lora.modules lora.layers",
    "generation.max_new_tokens": "max_tokens max_gen_len max_generated_tokens num_tokens n_tokens max_output_tokens "
    "generation.length generation.tokens",
    "generation.temperature": "temp",
    "generation.num_beams": "beams beam beam_size beam_width",
    "generation.num_return_sequences": "num_samples n_samples num_return",
    "generation.repetition_penalty": "rep_pen repeat_penalty",
    "generation.do_sample": "sample sampling",
    "early_stopping.early_stopping_patience": "patience",
    "early_stopping.early_stopping_threshold": "min_delta early_stopping.threshold",
    "evaluation.metrics": "metric",
    "--output-dir": "o out output out_dir outdir output_path save_dir save_path save_to run_dir checkpoint_dir",
    "--processes": "gpus n_gpus num_gpus n_gpu ngpus num_processes nproc nproc_per_node devices world_size",
    "--max-time": "time time_limit",
    "--seeds": "seeds num_seeds n_seeds runs repeats",
    "--sweep": "grid_search hyperparameter_search hp_search hpo",
    "--trials": "n_trials num_trials",
    "--resume": "continue resume_training resume_from resume_from_checkpoint",
    "--dry-run": "dry dryrun",
    "--accelerate-config": "accelerate",
}
# Words for the precision, whose value decides the key.
_PRECISION = ("precision", "amp", "mixed_precision", "half", "half_precision", "use_amp", "dtype", "torch_dtype")
_PRECISIONS = {
    **dict.fromkeys(("bf16", "bfloat16", "bf16-mixed"), "trainer.bf16=true"),
    **dict.fromkeys(("fp16", "float16", "16", "16-mixed", "half", "true"), "trainer.fp16=true"),
    **dict.fromkeys(("fp32", "float32", "32", "no", "none", "false"), "trainer.bf16=false"),
}


# Names of what is secret: no message repeats their values.
_SECRET_NAME = re.compile(r"(^|_)(token|key|secret|password)$")
_QUOTE = '"'
_ADVISED = re.compile(r"`(\w+) = ([^`]+)`")


def is_secret(name: str) -> bool:
    """Tell whether an option or a key is called like something secret."""
    return _SECRET_NAME.search(name.lower().replace("-", "_")) is not None


def synonyms(word: str) -> list[str]:
    """List our keys and options for a word of another library; `word` may have a table before it."""
    return _BY_WORD.get(word.lower().replace("-", "_"), [])


def _by_word() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, words in _WORDS.items():
        for word in words.split():
            found.setdefault(word, []).append(key)
    return found


_BY_WORD = _by_word()


def replacement(key: Key, text: str | None, task: object) -> str:
    """Return what to write for `key=text`: `trainer.learning_rate=1e-4`, `--seeds 3`; "" where nothing is known.

    `text` is None where there is no value to keep: then it is the key or the option alone.
    """
    word = key[-1].lower().replace("-", "_")
    if word in _PRECISION:
        return _PRECISIONS.get((text or "").strip("\"'").lower(), "trainer.bf16=true" if text else "trainer.bf16")
    for meant in (*synonyms(dotted(key)), *synonyms(word), *_same_name(word, task)):
        if meant.startswith("--"):
            return meant if text in (None, "", "true") else f"{meant} {shlex.quote(text)}"
        kind = key_type(split_key(meant), task)
        if kind and meant != dotted(key):
            return assignment(meant, None if text is None else _as_value(text, kind, meant))
    return ""


def table_replacement(key: Key, close_table: str, text: str, task: object) -> str:
    """Return what to write for `key=text` in a table that does not exist, of which `close_table` is the nearest."""
    own = (close_table, *key[1:])
    if close_table and key_type(own, task):
        return assignment(dotted(own), text)
    return replacement(key, text, task) if len(key) > 1 else ""


def _as_value(text: str, kind: Type, key: str) -> str:
    """Write a value of another library as one that the key takes: `True`, `.1`, `a,b`, an adapter switched on."""
    if text in ("True", "False"):
        text = text.lower()
    if kind.kinds & {"int", "float"} and re.match(r"-?\.\d", text):  # TOML wants a digit before the point
        text = text.replace(".", "0.", 1)
    if key == "lora.r" and text == "true":
        return "16"
    if "list" in kind.kinds and not kind.takes_text and text and not text.startswith("["):
        return json.dumps([part.strip() for part in text.split(",")], ensure_ascii=False)
    return text


def assignment(key: str, text: str | None) -> str:
    """Write `key=text` so that it can be pasted into a shell; the key alone where `text` is None."""
    return key if text is None else shlex.quote(scrub(f"{key}={text}"))


def for_shell(table: str, advice: str) -> str:
    """Write each `KEY = VALUE` of an advice on a key of `table` as an override."""
    return _ADVISED.sub(lambda part: f"`{assignment(f'{table}.{part[1]}', part[2].strip(_QUOTE))}`", advice)


def advised(table: str, advice: str) -> str:
    """Return the one override that an advice on a key of `table` names; "" if it names none or several."""
    found = _ADVISED.findall(advice)
    return assignment(f"{table}.{found[0][0]}", found[0][1].strip(_QUOTE)) if len(found) == 1 else ""


def _same_name(word: str, task: object) -> list[str]:
    """List the keys of that name; those of [trainer] before those of Muon, which are called the same."""
    keys = (key for key in known_keys(task, word) if key.rpartition(".")[2] == word)
    return sorted(keys, key=lambda key: key.startswith("optimizer."))


def suggestion(key: Key, siblings: Sequence[str], text: str | None, task: object) -> str:
    """Return what was most likely meant by an unknown key: a key of the same table by its name, or as in `replacement`.

    `text` is the value on the command line, which is kept; None for a key of a recipe.
    """
    if is_secret(key[-1]):
        text = None
    meant = replacement(key, text, task)
    close_key = "" if meant else nearest(key[-1], siblings)
    if not meant and not close_key and (close_word := nearest(key[-1], _BY_WORD)):
        meant = replacement((*key[:-1], close_word), text, task)
    if meant:
        table = f"{dotted(key[:-1])}."
        return meant.removeprefix(table) if text is None and len(key) > 1 else meant
    if not close_key or text is None:
        return close_key
    return assignment(dotted((*key[:-1], *split_key(close_key))), text)


def generation_replacement(word: str) -> str:
    """Find the field of GenerationConfig that was meant by an option or a word; "" where none was."""
    fields = upstream.fields("GenerationConfig")
    word = word.replace("-", "_")
    meant = [key.removeprefix("generation.") for key in synonyms(word) if key.startswith("generation.")]
    return word if word in fields else next(iter(meant), "") or nearest(word, fields)
