"""A fine-tuned classifier measured on SST-2's validation sentences by plain `Trainer.evaluate`, 8 at a time.

python benchmarks/plain/evaluate.py max_length 872 MODEL     every sentence padded to 128 tokens
python benchmarks/plain/evaluate.py batch 872 MODEL          padded to the longest of its batch

The number is that of the sentences. Prints the metrics as JSON.
"""

import json
import sys
import tempfile
from typing import Any

from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

padding, rows, name = sys.argv[1:]
to_longest = padding == "batch"
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForSequenceClassification.from_pretrained(name)


def encode(rows: dict[str, list[str]]) -> Any:
    return tokenizer(rows["sentence"], truncation=True, max_length=128, padding=False if to_longest else "max_length")


def accuracy(found: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((found.predictions.argmax(axis=-1) == found.label_ids).mean())}


data = load_dataset("nyu-mll/glue", "sst2", split=f"validation[:{rows}]").map(encode, batched=True)
with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir=folder, per_device_eval_batch_size=8, disable_tqdm=True),
        eval_dataset=data,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer) if to_longest else default_data_collator,
        compute_metrics=accuracy,
    )
    print(json.dumps({**trainer.evaluate(), "parameters": model.num_parameters()}))
