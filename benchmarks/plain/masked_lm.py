"""A small BERT from random weights in plain Trainer code: joined blocks, masked by DataCollatorForLanguageModeling.

python benchmarks/plain/masked_lm.py '{"output_dir": ..., "max_steps": ...}'      (fields of TrainingArguments)
"""

import json
import sys
from itertools import chain
from typing import Any

from datasets import load_dataset
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    set_seed,
)
from watch import train

BLOCK = 128

args = TrainingArguments(**json.loads(sys.argv[1]))
set_seed(args.seed)
tokenizer = AutoTokenizer.from_pretrained("google-bert/bert-base-uncased")


def encode(rows: dict[str, list[str]]) -> Any:
    return tokenizer(rows["text"], return_special_tokens_mask=True)


def join(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    joined = {name: list(chain.from_iterable(lists)) for name, lists in rows.items()}
    end = len(joined["input_ids"]) // BLOCK * BLOCK
    return {name: [ids[i : i + BLOCK] for i in range(0, end, BLOCK)] for name, ids in joined.items()}


parts = load_dataset("roneneldan/TinyStories", split=["train[:1000]", "validation[:50]"])
parts = [part.map(encode, batched=True, remove_columns=part.column_names).map(join, batched=True) for part in parts]
config = AutoConfig.from_pretrained(
    "google-bert/bert-base-uncased",
    num_hidden_layers=4,
    num_attention_heads=4,
    hidden_size=256,
    intermediate_size=1024,
    max_position_embeddings=BLOCK,
)
trainer = Trainer(
    model=AutoModelForMaskedLM.from_config(config),
    args=args,
    train_dataset=parts[0],
    eval_dataset=parts[1],
    processing_class=tokenizer,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
)
train(trainer, each=BLOCK)
