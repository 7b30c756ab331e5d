"""A classifier predicts through llmkit's Python API, one sentence after another.

python benchmarks/plain/predict_llmkit.py MODEL fp32|bf16|int8 ROWS.jsonl

Prints the labels as a JSON list.
"""

import json
import sys
from pathlib import Path

import llmkit

name, precision, file = sys.argv[1:]
options = {"fp32": {}, "bf16": {"precision": "bf16"}, "int8": {"quantize": "int8"}}[precision]
model = llmkit.load(name, **options)
sentences = [json.loads(line)["sentence"] for line in Path(file).read_text().splitlines()]
print(json.dumps([model.predict({"sentence": sentence})["label"] for sentence in sentences]))
