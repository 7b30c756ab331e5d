"""A model goes on from prompts by transformers' own `generate`, one after another, greedily.

python benchmarks/plain/generate.py MODEL TOKENS PROMPTS.jsonl

Writes exactly TOKENS new tokens behind the `prompt` of each line; prints each prompt with its completion as JSON.
"""

import json
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

name, count, file = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, dtype="float32")
for line in Path(file).read_text().splitlines():
    prompt = json.loads(line)["prompt"]
    inputs = tokenizer(prompt, return_tensors="pt")
    written = model.generate(**inputs, do_sample=False, min_new_tokens=int(count), max_new_tokens=int(count))
    new = written[0, inputs["input_ids"].shape[1] :]
    print(json.dumps({"prompt": prompt, "completion": tokenizer.decode(new, skip_special_tokens=True)}))
