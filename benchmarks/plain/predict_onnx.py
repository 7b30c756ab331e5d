"""A classifier predicts in onnxruntime, its weights in int8 by `quantize_dynamic`, a number of sentences at a time.

python benchmarks/plain/predict_onnx.py MODEL FOLDER             make the file, in a folder
python benchmarks/plain/predict_onnx.py MODEL FOLDER BATCH ROWS.jsonl

Each batch, in the order of the rows, is padded to its longest `sentence`. Prints the labels as a JSON list.
"""

import json
import os
import sys
from pathlib import Path

import onnxruntime
from transformers import AutoConfig, AutoTokenizer

name, folder, *rest = sys.argv[1:]
names = ["input_ids", "attention_mask", "token_type_ids"]
tokenizer = AutoTokenizer.from_pretrained(name)
if not rest:
    import torch
    from onnxruntime.quantization import quantize_dynamic
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(name).eval()
    example = tokenizer(["a sentence", "another one"], return_tensors="pt")
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        model,
        kwargs={each: example[each] for each in names},
        f=f"{folder}/fp32.onnx",
        dynamo=True,
        dynamic_shapes=dict.fromkeys(names, free),
        input_names=names,
        output_names=["logits"],
    )
    quantize_dynamic(f"{folder}/fp32.onnx", f"{folder}/int8.onnx")
    sys.exit()
size, file = rest
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))
session = onnxruntime.InferenceSession(f"{folder}/int8.onnx", options)
labels = AutoConfig.from_pretrained(name).id2label
sentences = [json.loads(line)["sentence"] for line in Path(file).read_text().splitlines()]
found: list[str] = []
for start in range(0, len(sentences), int(size)):
    batch = tokenizer(sentences[start : start + int(size)], truncation=True, padding=True, return_tensors="np")
    (logits,) = session.run(["logits"], {each: batch[each].astype("int64") for each in names})
    found += [labels[each] for each in logits.argmax(-1).tolist()]
print(json.dumps(found))
