"""Recipes that tests of recipes start from, and what is said about one that is mistaken."""

from importlib.metadata import version

import pytest

from llmkit import recipe
from llmkit.errors import UserError

PLAIN = """\
task = "causal-lm"

[model]
name = "openai-community/gpt2"

[data]
path = "org/corpus"
"""
MASKED = PLAIN.replace("causal-lm", "masked-lm")
SCRATCH = """\
task = "causal-lm"
[model]
config = { model_type = "gpt2", n_layer = 2 }
[tokenizer]
type = "characters"
[data]
path = "org/corpus"
"""
SOURCES = """\
task = "causal-lm"
[model]
name = "openai-community/gpt2"
[data]
block_size = 8
[data.sources.web]
path = "org/web"
name = "en"
weight = 3
[data.sources.books]
path = "org/books"
"""
DENOISING = PLAIN.replace("causal-lm", "denoising")
REPLACED = PLAIN.replace("causal-lm", "replaced-token-detection")
TRANSFORMERS = f"transformers {version('transformers').rpartition('.')[0]}"  # 5.23, not 5.23.0
TRAINING = f"not a field of TrainingArguments in {TRANSFORMERS}"


def problems(path, *overrides):
    with pytest.raises(UserError) as caught:
        recipe.load(path, overrides)
    details = list(caught.value.details)
    count, _, where = caught.value.message.partition(" problem")
    assert int(count) == len(details)
    if where.lstrip("s") == " on the command line":
        return [detail if detail.startswith("command line with") else f"command line  {detail}" for detail in details]
    assert where.lstrip("s") in (f" in `{path}`", f" in `{path}` and on the command line")
    return details
