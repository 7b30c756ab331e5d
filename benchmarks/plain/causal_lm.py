"""A small GPT-2 from random weights in plain Trainer code: texts joined and cut into blocks by `datasets.map`.

python benchmarks/plain/causal_lm.py '{"output_dir": ..., "max_steps": ...}'      (fields of TrainingArguments)
"""

import json
import sys
from itertools import chain
from typing import Any

from datasets import load_dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from watch import train

BLOCK = 128

args = TrainingArguments(**json.loads(sys.argv[1]))
set_seed(args.seed)
tokenizer = AutoTokenizer.from_pretrained("openai-community/gpt2")


def encode(rows: dict[str, list[str]]) -> Any:
    return tokenizer([text + tokenizer.eos_token for text in rows["text"]])


def join(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    joined = {name: list(chain.from_iterable(lists)) for name, lists in rows.items()}
    end = len(joined["input_ids"]) // BLOCK * BLOCK
    blocks = {name: [ids[i : i + BLOCK] for i in range(0, end, BLOCK)] for name, ids in joined.items()}
    return {**blocks, "labels": blocks["input_ids"]}


parts = load_dataset("roneneldan/TinyStories", split=["train[:1000]", "validation[:50]"])
parts = [part.map(encode, batched=True, remove_columns=part.column_names).map(join, batched=True) for part in parts]
config = AutoConfig.from_pretrained(
    "openai-community/gpt2",
    n_layer=4,
    n_head=4,
    n_embd=128,
    n_positions=BLOCK,
    attn_pdrop=0.0,
    embd_pdrop=0.0,
    resid_pdrop=0.0,
)
trainer = Trainer(
    model=AutoModelForCausalLM.from_config(config),
    args=args,
    train_dataset=parts[0],
    eval_dataset=parts[1],
    processing_class=tokenizer,
    data_collator=default_data_collator,
)
train(trainer, each=BLOCK)
