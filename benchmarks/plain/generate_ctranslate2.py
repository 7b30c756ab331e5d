"""A model goes on from prompts in CTranslate2's int8, one after another, greedily.

python benchmarks/plain/generate_ctranslate2.py TOKENIZER FOLDER TOKENS PROMPTS.jsonl

FOLDER is the converter's. Writes exactly TOKENS new tokens behind the `prompt` of each line; prints each prompt with
its completion as JSON.
"""

import json
import sys
from pathlib import Path

import ctranslate2
from transformers import AutoTokenizer

name, folder, count, file = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(name)
generator = ctranslate2.Generator(folder, device="cpu", inter_threads=1)
for line in Path(file).read_text().splitlines():
    prompt = json.loads(line)["prompt"]
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(prompt)["input_ids"])
    lengths = {"min_length": int(count), "max_length": int(count), "include_prompt_in_result": False}
    (written,) = generator.generate_batch([tokens], sampling_topk=1, **lengths)
    completion = tokenizer.decode(written.sequences_ids[0], skip_special_tokens=True)
    print(json.dumps({"prompt": prompt, "completion": completion}))
