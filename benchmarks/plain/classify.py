"""MiniLM learns SST-2 in plain Trainer code.

python benchmarks/plain/classify.py max_length 1600 '{"output_dir": ...}'     every sentence padded to 128 tokens
python benchmarks/plain/classify.py batch 1600 '{"output_dir": ...}'          padded to the longest of its batch

The number is that of the training rows; then fields of TrainingArguments.
"""

import json
import sys
from typing import Any

from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
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


def encode(rows: dict[str, list[str]]) -> Any:
    return tokenizer(rows["sentence"], truncation=True, max_length=128, padding=False if to_longest else "max_length")


parts = load_dataset("nyu-mll/glue", "sst2", split=[f"train[:{rows}]", "validation"])
names = parts[0].features["label"].names
parts = [part.map(encode, batched=True) for part in parts]
model = AutoModelForSequenceClassification.from_pretrained(MODEL, id2label=dict(enumerate(names)))
trainer = Trainer(
    model=model,
    args=args,
    train_dataset=parts[0],
    eval_dataset=parts[1],
    processing_class=tokenizer,
    data_collator=DataCollatorWithPadding(tokenizer) if to_longest else default_data_collator,
)
train(trainer)
