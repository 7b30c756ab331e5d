"""As little as there can be before a first step: a small GPT-2 on random tokens that are there already, by Trainer.

python benchmarks/plain/start.py '{"output_dir": ..., "max_steps": 1}'      (fields of TrainingArguments)
"""

import json
import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from watch import Watch

LENGTH, WORDS = 64, 65

config = GPT2Config(vocab_size=WORDS, n_layer=4, n_head=4, n_embd=128, n_positions=LENGTH)
blocks = torch.randint(WORDS, (100, LENGTH))
trainer = Trainer(
    model=GPT2LMHeadModel(config),
    args=TrainingArguments(**json.loads(sys.argv[1])),
    train_dataset=[{"input_ids": block, "labels": block} for block in blocks],
    callbacks=[Watch()],
)
trainer.train()
