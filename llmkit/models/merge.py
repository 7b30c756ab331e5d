"""An adapter into its base: one whole model that needs neither peft nor the base any more."""

import inspect
import os
import shutil
from pathlib import Path
from typing import Any

from llmkit import hub
from llmkit.errors import UserError, say
from llmkit.recipe.paths import at_home
from llmkit.runs import directory as runs

TOLERANCE = 1e-4  # how far a logit may move in fp32, as a share of the largest
LENGTH, BATCH = 16, 4  # tokens and inputs that the two models are compared on
# transformers' class of the model, by the task of its run or by peft's task type.
CLASSES = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "denoising": "AutoModelForSeq2SeqLM",
    "text-classification": "AutoModelForSequenceClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "token-classification": "AutoModelForTokenClassification",
    "multiple-choice": "AutoModelForMultipleChoice",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "chat": "AutoModelForCausalLM",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "TOKEN_CLS": "AutoModelForTokenClassification",
}


def merge(run: str, output: str) -> None:
    """Write the adapter of `run` (a run, a checkpoint, a folder or a Hub id), merged into its base, to `output`.

    The logits before and after are compared in fp32; RuntimeError where they differ. Raises UserError for a `run`
    without an adapter and an `output` with files in it; `output` is there whole or not at all.
    """
    target = at_home(output).resolve()
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(f"the output directory `{output}` holds other files", "name another, empty or new")
    revision = hub.commit(run)  # before torch is imported, which takes seconds
    import torch
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    from llmkit.models import loading
    from llmkit.models.config import positions

    with hub.loading(run, "model"):
        adapter = loading.adapter_settings(run, revision)
        if adapter is None and not Path(run).exists():  # not read is not the same as not there
            cached_file(run, "config.json", revision=revision)
    if adapter is None:
        raise UserError(
            f"`{run}` holds no adapter, there is nothing to merge",
            "a run with [lora] makes one; of a run that is not finished, name a checkpoint",
        )
    model = loading.load_model(run, _model_class(run, adapter)).float()
    generator = torch.Generator().manual_seed(0)
    length = min(LENGTH, positions(model.config) or LENGTH)
    ids = torch.randint(model.config.get_text_config().vocab_size, (BATCH, length), generator=generator)
    before = _logits(model, ids)
    try:
        model = model.merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError) as problem:  # no LoRA, or one that depends on the text
        raise UserError(
            f"the adapter `{run}` is none that can be merged into its base: {problem}",
            "use it as it is: llmkit loads an adapter wherever it loads a model",
        ) from problem
    after = _logits(model, ids)
    difference = ((after - before).abs().max() / before.abs().max()).item()
    if not difference <= TOLERANCE:  # NaN too
        raise RuntimeError(
            f"the merged model is another one: its logits differ by up to {difference:.1e} of the largest"
        )
    with hub.loading(run, "model"):
        in_run = loading.adapter_file(run, "tokenizer_config.json") is not None
        base = adapter["base_model_name_or_path"]
        tokenizer = AutoTokenizer.from_pretrained(
            run if in_run else base,
            revision=revision if in_run else hub.commit(base, adapter.get("revision")),
            trust_remote_code=False,
        )
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        with loading.quiet():
            model.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
        draft.replace(target)
    except OSError as problem:
        raise UserError(
            f"the output directory `{output}` cannot be written: {problem.strerror or problem}"
        ) from problem
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    say(f"merged `{run}` into {output}: its logits differ by at most {difference:.1e} of the largest one")


def _model_class(run: str, adapter: dict[str, Any]) -> Any:
    """The class of the adapter's model, by its run's task, else by peft's task type, which knows no multiple choice."""
    import transformers

    task = runs.read_record(Path(run)).get("task") or runs.read_record(Path(run).parent).get("task")  # a checkpoint's
    name = CLASSES.get(str(task)) or CLASSES.get(str(adapter.get("task_type")))
    if name is None:
        raise UserError(
            f"`{run}` does not say what its model is for (task_type {adapter.get('task_type')}, task {task})",
            f"merge knows the tasks {', '.join(name for name in CLASSES if name.islower())}",
        )
    return getattr(transformers, name)


def _logits(model: Any, ids: Any) -> Any:
    """The logits of every input; of question answering, those of the starts and then those of the ends.

    Of multiple choice `ids`, [B, L], are the choices of one input; a decoder reads what its encoder reads.
    """
    import torch

    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    ids = ids.to(model.device)
    choices = type(inner).__name__.endswith("ForMultipleChoice")
    decoder = "decoder_input_ids" in inspect.signature(inner.forward).parameters
    if decoder and model.config.eos_token_id is not None:  # where one that classifies looks
        ids[:, -1] = model.config.eos_token_id
    found = []
    with torch.inference_mode():
        # one by one: without a padding token, no batch can be classified
        for row in ids[None] if choices else ids[:, None]:
            outputs = model(input_ids=row[None] if choices else row, **({"decoder_input_ids": row} if decoder else {}))
            found += [outputs[key] for key in ("logits", "start_logits", "end_logits") if key in outputs]
    return torch.stack(found)
