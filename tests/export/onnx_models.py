"""Tiny models of each kind, exported to ONNX and run: `make exports`. Half a minute each, most of it tracing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import CAUSAL, MASKED, REST

ANIMALS = ("fox", "hen", "owl", "cat", "dog")
ROWS = {
    "text-classification": lambda i: {"text": f"the {ANIMALS[i % 5]} at {i}", "label": "yes" if i % 3 else "no"},
    "token-classification": lambda i: {"tokens": ["the", ANIMALS[i % 5], f"{i}"], "tags": ["O", "B-ANIMAL", "O"]},
    "question-answering": lambda i: {
        "id": str(i),
        "question": f"who is at {i}?",
        "context": f"the {ANIMALS[i % 5]} is at {i}",
        "answers": {"text": [ANIMALS[i % 5]], "answer_start": [4]},
    },
    "multiple-choice": lambda i: {"question": f"who is at {i}?", "choices": ["fox", "hen", "none"], "answer": i % 3},
    "seq2seq": lambda i: {"source": f"the {ANIMALS[i % 5]} saw {i}", "target": f"{ANIMALS[i % 5]} {i}"},
}
ROTARY = """
task = "causal-lm"
[model.config]
model_type = "{kind}"
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
hidden_size = 64
intermediate_size = 96
max_position_embeddings = 64
[tokenizer]
type = "byte-bpe"
vocab_size = 300
"""
STACKS = {
    "t5": "d_model = 32\nd_kv = 8\nd_ff = 64\nnum_layers = 2\nnum_decoder_layers = 2\nnum_heads = 4",
    "bart": "d_model = 32\nencoder_layers = 2\ndecoder_layers = 2\nencoder_attention_heads = 2\n"
    "decoder_attention_heads = 2\nencoder_ffn_dim = 64\ndecoder_ffn_dim = 64\nmax_position_embeddings = 128",
}
STACK = """
task = "seq2seq"
[model]
init = "scratch"
[model.config]
model_type = "{kind}"
{sizes}
[tokenizer]
type = "byte-bpe"
vocab_size = 300
[data]
path = "rows.jsonl"
[trainer]
max_steps = 60
per_device_train_batch_size = 8
learning_rate = 1e-2
"""
KINDS = ("gpt2", "llama", "qwen3", "masked-lm", *(task for task in ROWS if task != "seq2seq"), *STACKS)


@pytest.fixture
def run(request, llmkit, workplace, base) -> str:
    """A finished run of one kind, in the working directory."""
    kind = request.param
    task = "seq2seq" if kind in STACKS else kind
    if task in ROWS:
        Path("rows.jsonl").write_text("".join(json.dumps(ROWS[task](i)) + "\n" for i in range(60)))
    if kind in ROWS:
        words = ["finetune", "--task", kind, "data.path=rows.jsonl", f"model.name={base}", "data.max_length=32"]
        words += ["trainer.max_steps=30", "trainer.learning_rate=5e-3", "trainer.per_device_train_batch_size=8"]
    else:
        stack = STACK.format(kind=kind, sizes=STACKS[kind]) if kind in STACKS else ""
        recipes = {"gpt2": CAUSAL.replace("n_embd = 32", "n_embd = 32\neos_token_id = 0"), "masked-lm": MASKED}
        Path("own.toml").write_text(stack or recipes.get(kind) or ROTARY.format(kind=kind) + REST)
        words = ["finetune" if stack else "pretrain", "own.toml"]
    done = llmkit(*words, "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    return kind


@pytest.mark.parametrize("run", KINDS, indirect=True)
def test_what_is_exported_agrees_and_its_readme_runs(llmkit, run, workplace):
    done = llmkit("export", "run", "--format", "onnx", "--output", "files")
    assert done.exit_code == 0, done.stderr
    assert "compared in onnxruntime (f32), made-up inputs of several shapes" in done.stderr
    assert " of the run's data: logits differ by at most" in done.stderr
    for file in Path("files").iterdir():  # tracing notes where the code of each operation is
        assert b"site-packages" not in file.read_bytes()
        assert str(workplace).encode() not in file.read_bytes()
    code = re.search(r"```python\n(.*?)```", Path("files/README.md").read_text(), re.DOTALL)[1]
    used = subprocess.run([sys.executable, "-c", code], cwd="files", capture_output=True, text=True)
    assert used.returncode == 0, used.stderr
    if run in ("gpt2", "llama", "qwen3"):
        words = ["do_sample=false", "max_new_tokens=32", "repetition_penalty=1.0"]
        said = llmkit("generate", "Once upon a time", "--model", "run", *words).stdout
        short, long = sorted((used.stdout.strip(), said.strip()), key=len)
        assert long.startswith(short)
        assert len(short) > len("Once upon a time")


@pytest.mark.parametrize("run", ["text-classification"], indirect=True)
def test_a_damaged_tensor_of_a_real_export_is_found(llmkit, run, monkeypatch):
    import onnx_ir

    from llmkit.export import onnx_file

    own = onnx_file.save

    def damaged(program, file):
        weights = program.graph.initializers
        name = next(name for name, value in weights.items() if value.shape == (32, 32))
        weights[name].const_value = onnx_ir.tensor(weights[name].const_value.numpy() * np.float32(1.1), name=name)
        own(program, file)

    monkeypatch.setattr(onnx_file, "save", damaged)
    done = llmkit("export", "run", "--format", "onnx", "--output", "files")
    assert done.exit_code == 1
    assert "f32 does not compute what the model does" in done.stderr
    assert not Path("files").exists()


@pytest.mark.parametrize("run", ["text-classification"], indirect=True)
def test_eight_bits_agree_too(llmkit, run):
    done = llmkit("export", "run", "--format", "onnx", "--quantize", "int8", "--output", "files")
    assert done.exit_code in (0, 1), done.stderr
    assert Path("files").exists() == (done.exit_code == 0)  # a model this small may be too sensitive
    assert "int8" in done.stderr


def test_an_adapter_is_merged_first(llmkit, workplace):
    Path("own.toml").write_text(CAUSAL)
    assert llmkit("pretrain", "own.toml", "--output-dir", "run").exit_code == 0
    words = ["model.name=run", "lora.r=2", "trainer.max_steps=2"]
    assert llmkit("pretrain", "own.toml", *words, "--output-dir", "adapter").exit_code == 0
    done = llmkit("export", "adapter", "--format", "onnx", "--output", "files")
    assert done.exit_code == 0, done.stderr
    assert "merged `adapter`" in done.stderr
    assert " of the run's data: logits differ by at most" in done.stderr
