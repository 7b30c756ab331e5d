"""Decide which pretraining tasks fit an architecture, by transformers' tables of heads."""

from typing import Any

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from llmkit.errors import UserError

# For messages: a description of the architectures that a task fits, and an example of one.
DESCRIPTIONS = {
    "masked-lm": ("an encoder (each token sees those on both sides)", "bert or modernbert"),
    "causal-lm": ("a decoder (each token sees only those before it)", "gpt2 or llama"),
    "denoising": ("an encoder-decoder (it reads one text and writes another)", "bart or t5"),
    "replaced-token-detection": ("a discriminator", "electra"),
}


def fitting_tasks(config: Any) -> tuple[str, ...]:
    """Return the pretraining tasks that fit a model's configuration; none where it is no language model.

    The tables alone do not decide: BERT has a causal-lm head, but without `is_decoder = true` it sees the token that
    it should predict; BART has a masked-lm head.
    """
    model_type = config.model_type
    if config.is_encoder_decoder:
        return ("denoising",) if model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES else ()
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return ("masked-lm", "replaced-token-detection") if model_type == "electra" else ("masked-lm",)
    return ("causal-lm",) if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else ()


def check_architecture(config: Any, task: str) -> None:
    """Raise UserError where `task` does not fit the architecture; a model with its own code on the Hub passes."""
    fitting = fitting_tasks(config)
    if task in fitting or getattr(config, "auto_map", None):
        return
    name = type(config).__name__.removesuffix("Config")
    description, example = DESCRIPTIONS[task][0].partition(" (")[0], DESCRIPTIONS[task][1]
    if not fitting:
        raise UserError(
            f"[model]: {name} ({config.model_type}) is not a language model that {task} can pretrain",
            f"{task} is for {description}, such as {example}",
        )
    raise UserError(
        f"[model]: {name} ({config.model_type}) is {DESCRIPTIONS[fitting[0]][0]}; {task} does not fit it",
        f"its task is {' or '.join(fitting)}; {task} is for {description}, such as {example}",
    )
