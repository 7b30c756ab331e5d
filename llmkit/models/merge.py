"""An adapter into its base: one whole model that needs neither peft nor the base any more."""

import inspect
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from llmkit import disk, hub, process
from llmkit.data.output import check_folder, new_folder
from llmkit.errors import UserError, in_bytes, say
from llmkit.recipe.tasks import TASKS, task_of_adapter
from llmkit.runs.finished import record_of

Precision = Literal["fp32", "bf16", "fp16"]
TOLERANCE = 1e-4  # how far a logit may move in fp32, as a share of the largest
LENGTH, BATCH = 16, 4  # tokens and inputs that the two models are compared on


def merge(run: str, output: str, precision: Precision = "fp32") -> None:
    """Write the adapter of `run` (a run, a checkpoint, a folder or a Hub id), merged into its base, to `output`.

    The weights are merged in fp32 and then rounded to `precision`. The logits before and after merging, and those of
    the rounded weights and of what is written, are compared; RuntimeError where they differ. Raises UserError for a
    `run` without an adapter and an `output` with files in it; `output` is there whole or not at all.
    """
    target = check_folder(output)
    revision = hub.commit(run)  # before torch is imported, which takes seconds
    import torch
    from transformers.utils import cached_file

    from llmkit.models import loading
    from llmkit.models.config import positions

    with hub.loading(run, "model"):
        adapter = loading.adapter_settings(run, revision)
        if adapter is None and not disk.exists(Path(run)):  # not read is not the same as not there
            cached_file(run, "config.json", revision=revision)
    if adapter is None:
        raise UserError(
            f"`{run}` has no adapter to merge",
            "name a run trained with [lora], or a checkpoint of one that is not finished",
        )
    model_class = _model_class(run, adapter)
    model = loading.load_model(run, model_class).float()
    process.collect_from_here()
    generator = torch.Generator().manual_seed(0)
    length = min(LENGTH, positions(model.config) or LENGTH)
    ids = torch.randint(model.config.get_text_config().vocab_size, (BATCH, length), generator=generator)
    before = _logits(model, ids)
    with hub.loading(run, "model"):
        in_run = loading.adapter_file(run, "tokenizer_config.json") is not None
        base = adapter["base_model_name_or_path"]
    tokenizer = loading.load_tokenizer(
        run if in_run else base, revision if in_run else hub.commit(base, adapter.get("revision"))
    )
    model = _merge_weights(model, run)
    _must_match(_logits(model, ids), before)
    with new_folder(target, output) as draft:
        model.to({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision])
        with loading.quiet():
            model.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
        rounded = _logits(model.float(), ids)
        del model
        after = _logits(loading.load_model(str(draft), model_class).float(), ids)  # of what is written
        _must_match(after, rounded)
        size = in_bytes(sum(file.stat().st_size for file in draft.glob("*.safetensors")))
    say(
        f"merged `{run}` into {output}, in {precision} ({size}): its logits differ by at most "
        f"{_difference(after, before):.1e} of the largest one"
    )


def _must_match(after: Any, before: Any) -> None:
    """Raise RuntimeError where logits are not what they were."""
    difference = _difference(after, before)
    if not difference <= TOLERANCE:  # NaN too
        raise RuntimeError(
            f"the merged model does not match: its logits differ by up to {difference:.1e} of the largest"
        )


def _difference(after: Any, before: Any) -> float:
    """Return the largest difference, as a share of the largest logit."""
    return float(((after - before).abs().max() / before.abs().max()).item())


def _model_class(run: str, adapter: dict[str, Any]) -> Any:
    """Return transformers' class of the adapter's model: its run says its task, else peft's task type does."""
    import transformers

    kind = adapter.get("task_type")
    task = record_of(run).get("task") or task_of_adapter(kind)
    if task not in TASKS:
        raise UserError(
            f"cannot tell which task `{run}` was trained for (task_type {kind}, task {task})",
            "llmkit looks in run.json for its own runs, and in task_type (adapter_config.json) for other adapters",
        )
    return getattr(transformers, TASKS[task].auto_class)


def _merge_weights(model: Any, run: str) -> Any:
    """Add the adapter to the weights of its base, and return that; UserError where that cannot be.

    Weights that two layers share (tied) become two where there is an adapter; peft unties them in the configuration.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    from llmkit.models import loading

    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            base = layer.get_base_layer()
            if uses[id(getattr(base, "weight", None))] > 1:
                base.weight = nn.Parameter(base.weight.detach().clone())
    try:
        with loading.quiet():
            return model.merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError) as problem:  # no LoRA, or one that depends on the text
        raise UserError(
            f"the adapter `{run}` cannot be merged into its base model: {problem}",
            "use it as it is: llmkit loads an adapter wherever it loads a model",
        ) from problem


def _logits(model: Any, ids: Any) -> Any:
    """Compute the logits of every input; of question answering, those of the starts and then those of the ends.

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
