"""The README beside ONNX files: what they hold, how they were compared, and code that runs them."""

import json
from string import Template
from typing import Any

from llmkit.models.config import positions
from llmkit.recipe.tasks import TASKS

NAME = "README.md"
LONGEST = 512  # tokens of an input where the model sets no limit

HEAD = """\
import json

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.no_padding()
tokenizer.enable_truncation($length)
"""
SESSION = """\
session = onnxruntime.InferenceSession("model.onnx")


def run(*found):
    values = {
        "input_ids": [each.ids for each in found],
        "attention_mask": [each.attention_mask for each in found],
        "token_type_ids": [each.type_ids for each in found],
    }
    return session.run(None, {each.name: np.array(values[each.name]) for each in session.get_inputs()})


"""
CLASSES = """\
names = json.load(open("config.json"))["id2label"]
logits = run(tokenizer.encode("A text."))[0][0]
print({names[str(i)]: float(value) for i, value in enumerate(logits)})
"""
TAGS = """\
names = json.load(open("config.json"))["id2label"]
found = tokenizer.encode("Ada Lovelace was born in London.")
for token, best in zip(found.tokens, run(found)[0][0].argmax(-1)):
    print(token, names[str(best)])
"""
ANSWER = """\
context = "Ada Lovelace was born in London."
found = tokenizer.encode("Where was she born?", context)
start, end = (logits[0] for logits in run(found))
pairs = [
    (start[i] + end[j], i, j)
    for i in range(len(start))
    for j in range(i, min(i + 30, len(end)))
    if found.sequence_ids[i] == found.sequence_ids[j] == 1
]
_, first, last = max(pairs)
print(context[found.offsets[first][0] : found.offsets[last][1]])
"""
CHOICES = """\
choices = ["It rains.", "The sun shines."]
tokenizer.enable_padding()
found = tokenizer.encode_batch([("The street is wet.", choice) for choice in choices])
values = {
    "input_ids": [each.ids for each in found],
    "attention_mask": [each.attention_mask for each in found],
    "token_type_ids": [each.type_ids for each in found],
}
logits = session.run(None, {each.name: np.array([values[each.name]]) for each in session.get_inputs()})[0][0]
print(choices[logits.argmax()])
"""
BLANK = """\
found = tokenizer.encode("The sun is $mask .")
place = found.ids.index($mask_id)
for token in run(found)[0][0, place].argsort()[::-1][:5]:
    print(tokenizer.decode([int(token)]))
"""
CAUSAL = """\
session = onnxruntime.InferenceSession("model.onnx")
ends = $ends


def empty(each):
    return np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32)


prompt = $prompt
new = tokenizer.encode(prompt$bare).ids
written, cache = list(new), [empty(each) for each in session.get_inputs() if each.name.startswith("past_")]
for _ in range(min(32, $length - len(new))):
    values = {
        "input_ids": np.array([new]),
        "attention_mask": np.ones((1, len(written)), np.int64),
        "position_ids": np.arange(len(written) - len(new), len(written))[None],
    }
    caches = [each.name for each in session.get_inputs() if each.name.startswith("past_")]
    values = {each.name: values[each.name] for each in session.get_inputs() if each.name in values}
    logits, *cache = session.run(None, values | dict(zip(caches, cache)))
    new = [int(logits[0, -1].argmax())]  # the best one each time; no sampling
    if new[0] in ends:
        break
    written += new
print(tokenizer.decode(written))
"""
SEQ2SEQ = """\
encoder, decoder = (onnxruntime.InferenceSession(name) for name in ("encoder.onnx", "decoder.onnx"))
found = tokenizer.encode("A text.")
mask = np.array([found.attention_mask])
hidden = encoder.run(None, {"input_ids": np.array([found.ids]), "attention_mask": mask})[0]
caches = [each for each in decoder.get_inputs() if each.name.startswith("past_")]
cache = [np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32) for each in caches]
new, written = $start, []
for _ in range(min(64, $length)):
    values = {"decoder_input_ids": np.array([[new]]), "encoder_hidden_states": hidden, "attention_mask": mask}
    logits, *cache = decoder.run(None, values | {each.name: value for each, value in zip(caches, cache)})
    new = int(logits[0, -1].argmax())  # the best one each time; no beams
    if new in $ends:
        break
    written.append(new)
print(tokenizer.decode(written))
"""
CODE = {
    "text-classification": SESSION + CLASSES,
    "token-classification": SESSION + TAGS,
    "question-answering": SESSION + ANSWER,
    "multiple-choice": SESSION.split("\n\n\n")[0] + "\n" + CHOICES,
    "masked-lm": SESSION + BLANK,
}


def readme(model: Any, tokenizer: Any, task: str, compared: list[str]) -> str:
    """Return a README with what was compared and code that runs the files."""
    lines = [f"# {type(model).__name__} as ONNX", ""]
    lines += [f"- {line}" for line in compared]
    lines += ["", "Batches, sequences and caches may have any length. In this folder, after"]
    lines += ["`pip install onnxruntime tokenizers numpy`:", ""]
    lines += ["```python", code(model, tokenizer, task).rstrip(), "```", ""]
    return "\n".join(lines)


def code(model: Any, tokenizer: Any, task: str) -> str:
    """Return a program that runs the files with onnxruntime, tokenizers and numpy alone."""
    general = {"AutoModelForCausalLM": CAUSAL, "AutoModelForSeq2SeqLM": SEQ2SEQ}
    body = general.get(TASKS[task].auto_class) or CODE[task]
    head = HEAD if "json." in body else HEAD.removeprefix("import json\n\n")
    length = positions(model.config) or LONGEST
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    chat, prompt = bool(getattr(tokenizer, "chat_template", None)), "Once upon a time"
    if chat:
        question = [{"role": "user", "content": "What is the capital of France?"}]
        prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    start = getattr(getattr(model, "generation_config", None), "decoder_start_token_id", None)
    if start is None:
        start = getattr(model.config, "decoder_start_token_id", None)
    return Template(head + body).safe_substitute(
        length=min(length, LONGEST),
        mask=tokenizer.mask_token or "",
        mask_id=tokenizer.mask_token_id,
        ends=ends,
        prompt=json.dumps(prompt, ensure_ascii=False),
        bare=", add_special_tokens=False" if chat else "",
        start=start,
    )
