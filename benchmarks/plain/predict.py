"""A classifier predicts in fp32 by transformers alone, a number of sentences at a time.

python benchmarks/plain/predict.py MODEL BATCH ROWS.jsonl

Each batch, in the order of the file, is padded to its longest `sentence`. Prints the labels as a JSON list.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

name, size, file = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForSequenceClassification.from_pretrained(name, dtype="float32")
sentences = [json.loads(line)["sentence"] for line in Path(file).read_text().splitlines()]
labels: list[str] = []
with torch.inference_mode():
    for start in range(0, len(sentences), int(size)):
        batch = tokenizer(sentences[start : start + int(size)], truncation=True, padding=True, return_tensors="pt")
        labels += [model.config.id2label[each] for each in model(**batch).logits.argmax(-1).tolist()]
print(json.dumps(labels))
