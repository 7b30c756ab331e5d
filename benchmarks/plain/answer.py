"""MiniLM learns to answer questions (squad_v2) in plain Trainer code: windows of 384 tokens, 128 of them shared.

python benchmarks/plain/answer.py max_length 400 '{"output_dir": ...}'     every window padded to 384 tokens
python benchmarks/plain/answer.py batch 400 '{"output_dir": ...}'          padded to the longest of its batch

The number is that of the training questions; then fields of TrainingArguments.
"""

import json
import sys
from typing import Any

from datasets import load_dataset
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from watch import train

MODEL = "sentence-transformers/all-MiniLM-L6-v2"

padding, rows, settings = sys.argv[1:]
to_longest = padding == "batch"
args = TrainingArguments(**json.loads(settings))
set_seed(args.seed)
tokenizer = AutoTokenizer.from_pretrained(MODEL)


def encode(rows: dict[str, list[Any]]) -> Any:
    windows = tokenizer(
        [question.strip() for question in rows["question"]],
        rows["context"],
        truncation="only_second",
        max_length=384,
        stride=128,
        return_overflowing_tokens=True,
        padding=False if to_longest else "max_length",
    )
    places = []
    for window, row in enumerate(windows.pop("overflow_to_sample_mapping")):
        place = None, None
        if rows["answers"][row]["text"]:
            start, text = rows["answers"][row]["answer_start"][0], rows["answers"][row]["text"][0]
            ends = start, start + len(text) - 1
            place = tuple(windows.char_to_token(window, each, sequence_index=1) for each in ends)
        places.append((0, 0) if None in place else place)  # not in this window: [CLS]
    windows["start_positions"], windows["end_positions"] = map(list, zip(*places, strict=True))
    return windows


parts = load_dataset("rajpurkar/squad_v2", split=[f"train[:{rows}]", "validation[:100]"])
parts = [part.map(encode, batched=True, remove_columns=part.column_names) for part in parts]
trainer = Trainer(
    model=AutoModelForQuestionAnswering.from_pretrained(MODEL),
    args=args,
    train_dataset=parts[0],
    eval_dataset=parts[1],
    processing_class=tokenizer,
    data_collator=DataCollatorWithPadding(tokenizer) if to_longest else default_data_collator,
)
train(trainer)
