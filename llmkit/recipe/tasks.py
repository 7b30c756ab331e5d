"""One record a task: what the rest of llmkit must know of a task before torch is imported.

What a task computes stands in its file in `llmkit/tasks/`; `tasks.row_task` and `tasks.text_task` find it by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llmkit.recipe.data_tables import (
    AnsweringData,
    CausalData,
    ChatData,
    ChoiceData,
    ClassificationData,
    Data,
    DenoisingData,
    MaskedData,
    PairData,
    ReplacedData,
    TaggingData,
)

# The special tokens of a tokenizer that a run trains: upstream's own names for them. GPT-2's (with a pad token of its
# own, so that padding is never taken for the end), BERT's, and T5's in its order.
CAUSAL_TOKENS = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
MASKED_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
SEQ2SEQ_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


@dataclass(frozen=True)
class TaskRecord:
    """What a task reads, which models fit it, and what its finished models are for.

    Attributes:
        data: the class of its [data].
        reads: running text, which is pretraining, or rows, which is fine-tuning.
        rows: the module of `llmkit/data/rows` that reads its rows, where it reads rows.
        auto_class: transformers' class of the model that is trained. Two tasks of one class have one kind of model:
            each is evaluated on the data of the other.
        peft_type: peft's task type of its adapters; None where peft has none that fits.
        head_suffixes: endings of architecture names by which a model that no run's record describes is this task's.
        pipeline: the Hub's tag for what its models do.
        on_encoder: its model is an encoder under a head that is new, so several such tasks can share one encoder.
        writes: its models write text, as [generation] says.
        special_tokens: those of a tokenizer that the run trains, by transformers' names.
        num_sentinels: how many sentinel tokens such a tokenizer has behind them.
        ends_with_eos: such a tokenizer sets the end-of-sequence token behind every text.
        uncounted: what a dry run's count of parameters does not know yet.
        try_it: what to do with a finished model, with its `{directory}` and, of a masked one, `{mask_token}`; None:
            `llmkit predict` with a text or with a file of its columns.
    """

    data: type[Data]
    reads: Literal["text", "rows"]
    auto_class: str
    rows: str = ""
    peft_type: str | None = None
    head_suffixes: tuple[str, ...] = ()
    pipeline: str | None = None
    on_encoder: bool = False
    writes: bool = False
    special_tokens: Mapping[str, str] = field(default_factory=lambda: MASKED_TOKENS)
    num_sentinels: int = 0
    ends_with_eos: bool = False
    uncounted: str = ""
    try_it: str | None = None


TASKS: dict[str, TaskRecord] = {
    "causal-lm": TaskRecord(
        data=CausalData,
        reads="text",
        auto_class="AutoModelForCausalLM",
        peft_type="CAUSAL_LM",
        head_suffixes=("LMHeadModel", "ForCausalLM"),
        writes=True,
        special_tokens=CAUSAL_TOKENS,
        try_it='try it: llmkit generate "Once upon a time" --model {directory}',
    ),
    "masked-lm": TaskRecord(
        data=MaskedData,
        reads="text",
        auto_class="AutoModelForMaskedLM",
        head_suffixes=("ForMaskedLM", "ForPreTraining"),
        try_it='try it: llmkit predict {directory} "Once upon a {mask_token} ."',
    ),
    "denoising": TaskRecord(
        data=DenoisingData,
        reads="text",
        auto_class="AutoModelForSeq2SeqLM",
        peft_type="SEQ_2_SEQ_LM",
        writes=True,
        special_tokens={**SEQ2SEQ_TOKENS, "mask_token": "<mask>"},
        num_sentinels=100,
        ends_with_eos=True,
        try_it='try it: llmkit predict {directory} "Then it rained. At first the sun shone."',
    ),
    "replaced-token-detection": TaskRecord(
        data=ReplacedData,
        reads="text",
        auto_class="AutoModelForPreTraining",
        head_suffixes=("ElectraForPreTraining",),
        uncounted=", without the generator",
        try_it="next:   llmkit finetune RECIPE model.name={directory}",
    ),
    "text-classification": TaskRecord(
        data=ClassificationData,
        reads="rows",
        rows="classification",
        auto_class="AutoModelForSequenceClassification",
        peft_type="SEQ_CLS",
        head_suffixes=("ForSequenceClassification",),
        pipeline="text-classification",
        on_encoder=True,
    ),
    "question-answering": TaskRecord(
        data=AnsweringData,
        reads="rows",
        rows="answering",
        auto_class="AutoModelForQuestionAnswering",
        peft_type="QUESTION_ANS",
        head_suffixes=("ForQuestionAnswering",),
        pipeline="question-answering",
        on_encoder=True,
    ),
    "token-classification": TaskRecord(
        data=TaggingData,
        reads="rows",
        rows="tagging",
        auto_class="AutoModelForTokenClassification",
        peft_type="TOKEN_CLS",
        head_suffixes=("ForTokenClassification",),
        pipeline="token-classification",
        on_encoder=True,
    ),
    "multiple-choice": TaskRecord(
        data=ChoiceData,
        reads="rows",
        rows="choices",
        auto_class="AutoModelForMultipleChoice",
        peft_type="SEQ_CLS",  # peft has no type for it; this one hands inputs of any shape on to the model
        head_suffixes=("ForMultipleChoice",),
        pipeline="multiple-choice",
        on_encoder=True,
    ),
    "seq2seq": TaskRecord(
        data=PairData,
        reads="rows",
        rows="pairs",
        auto_class="AutoModelForSeq2SeqLM",
        peft_type="SEQ_2_SEQ_LM",
        head_suffixes=("ForConditionalGeneration", "MTModel"),  # MarianMTModel
        pipeline="text2text-generation",
        writes=True,
        special_tokens=SEQ2SEQ_TOKENS,
        ends_with_eos=True,
    ),
    "chat": TaskRecord(
        data=ChatData,
        reads="rows",
        rows="conversations",
        auto_class="AutoModelForCausalLM",
        peft_type="CAUSAL_LM",
        pipeline="text-generation",
        writes=True,
        special_tokens=CAUSAL_TOKENS,
        try_it="try it: llmkit generate --chat --model {directory}",
    ),
}


def architecture_of(config: Any) -> str:
    """Return the class that a model's configuration names, such as `BertForMaskedLM`; "?" where it names none."""
    names = config.architectures
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else "?"


def task_of_architecture(architecture: str) -> str | None:
    """Name the task whose models an architecture, such as `BertForMaskedLM`, is; None where it is no task's.

    The longest suffix counts: `ElectraForPreTraining` is a discriminator, `BertForPreTraining` a masked language model.
    """
    suffixes = {suffix: name for name, record in TASKS.items() for suffix in record.head_suffixes}
    return next((suffixes[s] for s in sorted(suffixes, key=len, reverse=True) if architecture.endswith(s)), None)


def task_of_adapter(peft_type: str | None) -> str | None:
    """Name the task that an adapter of peft's task type is for; None where none is.

    Of several tasks of one type, the first whose models are known by their architectures.
    """
    names = (name for name, record in TASKS.items() if record.peft_type == peft_type and record.head_suffixes)
    return None if peft_type is None else next(names, None)


def alike(task: str, other: str) -> bool:
    """Tell whether two tasks have one kind of model: either is evaluated on the data of the other."""
    return task in TASKS and other in TASKS and TASKS[task].auto_class == TASKS[other].auto_class
