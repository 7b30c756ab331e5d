"""SmolLM2 learns Alpaca's answers with an adapter by trl's SFTTrainer: the recipe `chat` in code.

python benchmarks/plain/chat_trl.py 160 '{"output_dir": ..., "max_steps": ...}'

The number is that of the conversations; then fields of TrainingArguments.
"""

import json
import sys
from typing import Any

from datasets import load_dataset
from peft import LoraConfig
from transformers import set_seed
from trl import SFTConfig, SFTTrainer
from watch import train

rows, settings = sys.argv[1:]
args = SFTConfig(**json.loads(settings), max_length=512, bf16=False)
set_seed(args.seed)


def talk(row: dict[str, str]) -> dict[str, Any]:
    asked = "\n\n".join(filter(None, (row["instruction"], row["input"])))
    return {
        "prompt": [{"role": "user", "content": asked}],
        "completion": [{"role": "assistant", "content": row["output"]}],
    }


data = load_dataset("tatsu-lab/alpaca", split=f"train[:{rows}]")
trainer = SFTTrainer(
    model="HuggingFaceTB/SmolLM2-135M-Instruct",
    args=args,
    train_dataset=data.map(talk, remove_columns=data.column_names),
    peft_config=LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM"),
)
train(trainer)
