"""ModernBERT with padding: under each implementation of attention the same losses, and never NaN.

A token at the end of the padding has nothing but padding in its window (`local_attention`): the softmax of nothing.
"""

import json
import math

import pytest
from conftest import corpus, losses

MODEL = """
[model.config]
model_type = "modernbert"
num_hidden_layers = 3
layer_types = ["full_attention", "sliding_attention", "sliding_attention"]
local_attention = 4
num_attention_heads = 2
hidden_size = 32
intermediate_size = 64
max_position_embeddings = 128
initializer_cutoff_factor = 2.0
initializer_range = 0.1
[tokenizer]
type = "wordpiece"
vocab_size = 300
[data]
"""
TRAINER = """
[trainer]
max_steps = 6
per_device_train_batch_size = 8
per_device_eval_batch_size = 8
learning_rate = 1e-2
logging_steps = 1
"""
TASKS = {
    "masked-lm": 'path = "corpus.txt"\nsample_by = "line"\nblock_size = 128\nmlm_probability = 0.5\n',
    "text-classification": 'path = "rows.jsonl"\n',
    "token-classification": 'path = "words.jsonl"\n',
    "multiple-choice": 'path = "choices.jsonl"\n',
}


@pytest.fixture
def place(workplace):
    """Texts of 1 to 100 words, side by side."""
    texts = []
    for i, line in enumerate(corpus(120).splitlines()):
        texts.append("fox" if i % 3 == 1 else f"{line} " * (9 if i % 3 == 2 else 1))
    rows = [{"text": text, "label": ("a", "b")[i % 2]} for i, text in enumerate(texts)]
    words = [{"tokens": text.split(), "tags": [("A", "B")[i % 2]] * len(text.split())} for i, text in enumerate(texts)]
    choices = [
        {"question": text, "choices": ["a fox", "a hen " * (1 + 3 * (i % 5))], "answer": i % 2}
        for i, text in enumerate(texts)
    ]
    for name, content in (("rows", rows), ("words", words), ("choices", choices)):
        (workplace / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in content))
    return workplace


@pytest.mark.parametrize("task", TASKS)
def test_eager_and_sdpa_attention_have_the_same_losses_with_padding(task, place, llmkit):
    data = TASKS[task] + "validation_fraction = 0.2\n"
    (place / "recipe.toml").write_text(f'task = "{task}"{MODEL}{data}{TRAINER}')
    verb = "pretrain" if task == "masked-lm" else "finetune"
    found = {}
    for attention in ("eager", "sdpa"):
        done = llmkit(verb, "recipe.toml", f"model.attn_implementation={attention}", "--output-dir", attention)
        assert done.exit_code == 0, done.stderr
        record = json.loads((place / attention / "run.json").read_text())
        found[attention] = [*losses(place / attention), record["metrics"]["eval_loss"]]
        assert record["speed"]["attn_implementation"] == attention
        assert len(found[attention]) == 7
        assert all(map(math.isfinite, found[attention]))
    assert found["eager"] == pytest.approx(found["sdpa"], rel=2e-4)
