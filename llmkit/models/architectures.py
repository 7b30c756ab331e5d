"""Which tasks of pretraining an architecture is made for, as transformers' own tables of heads have it."""

from typing import Any

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from llmkit.errors import UserError

# What the first task of each kind of architecture says of it, and an example for whoever wants that task.
KINDS = {
    "masked-lm": ("an encoder: each of its tokens sees those on both sides", "bert or modernbert"),
    "causal-lm": ("a decoder: each of its tokens sees those before it", "gpt2 or llama"),
    "denoising": ("an encoder-decoder: it reads one text and writes another", "bart or t5"),
    "replaced-token-detection": ("a discriminator", "electra"),
}


def suits(config: Any) -> tuple[str, ...]:
    """The tasks of pretraining that fit a model's configuration; none where it is no language model.

    The tables alone do not say: BERT has a head for causal-lm, which sees what it is to predict unless
    `is_decoder = true`, and BART one for masked-lm.
    """
    kind = config.model_type
    if config.is_encoder_decoder:
        return ("denoising",) if kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES else ()
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return ("masked-lm", "replaced-token-detection") if kind == "electra" else ("masked-lm",)
    return ("causal-lm",) if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else ()


def check_architecture(config: Any, task: str) -> None:
    """Raise UserError where `task` does not fit the architecture; code of its own from the Hub is believed."""
    fitting = suits(config)
    if task in fitting or getattr(config, "auto_map", None):
        return
    name = type(config).__name__.removesuffix("Config")
    what, example = KINDS[task][0].partition(":")[0], KINDS[task][1]
    if not fitting:
        raise UserError(
            f"[model]: {name} ({config.model_type}) is no language model that {task} could pretrain",
            f"{task} is for {what}, such as {example}",
        )
    raise UserError(
        f"[model]: {name} ({config.model_type}) is {KINDS[fitting[0]][0]}; {task} does not fit it",
        f"its task is {' or '.join(fitting)}; {task} is for {what}, such as {example}",
    )
