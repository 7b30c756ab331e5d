"""`llmkit export --format gguf`: what is written is read back, and what does not agree is not left behind."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import CAUSAL, byte_tokenizer
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from llmkit.errors import RunError, UserError
from llmkit.export import gguf_file

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIZES = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 0, "initializer_range": 0.4}
ROTARY = {**SIZES, "intermediate_size": 96, "num_key_value_heads": 2}
MODELS = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=300, n_embd=64, n_layer=2, n_head=4, n_positions=64, eos_token_id=0, initializer_range=0.4
        )
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**ROTARY)),
    "tied-llama": lambda: LlamaForCausalLM(LlamaConfig(**ROTARY, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**ROTARY)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**ROTARY, head_dim=32)),
    "odd-width": lambda: LlamaForCausalLM(LlamaConfig(**{**ROTARY, "hidden_size": 48, "intermediate_size": 80})),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory) -> Path:
    """A folder with a model of random weights, whose outputs are far from even, and a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("models") / request.param
    torch.manual_seed(3)
    made = MODELS[request.param]().eval()
    made.generation_config.eos_token_id = 0
    made.save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("precision", ["f32", "f16", "bf16", "q8_0"])
def test_what_is_read_back_agrees(llmkit, model, tmp_path, precision):
    done = llmkit("export", str(model), "--output", str(tmp_path / "out"), "--precision", precision)
    if done.exit_code == 1:  # a random model may be too sensitive: then nothing is left
        assert precision in ("bf16", "q8_0")
        assert "does not compute what the model does" in done.stderr
        assert list(tmp_path.iterdir()) == []
        return
    assert done.exit_code == 0, done.stderr
    file = tmp_path / "out" / f"{model.name}-{precision}.gguf"
    ours = AutoModelForCausalLM.from_pretrained(model).eval()
    words = {"gguf_file": file.name, "config": ours.config, "dtype": torch.float32}
    again = AutoModelForCausalLM.from_pretrained(file.parent, **words).eval()
    ids = torch.arange(5, 45)[None]
    with torch.inference_mode():
        ours, theirs = (each(ids).logits for each in (ours, again))
    if precision == "f32":
        assert (ours - theirs).abs().max() < 1e-4
    else:
        assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() > 0.9
    assert "compared on" in done.stderr
    assert (tmp_path / "out/Modelfile").read_text().startswith(f"FROM ./{file.name}\n")


def parts(folder: Path):
    from transformers import AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("damaged") / "llama"
    torch.manual_seed(3)
    MODELS["llama"]().save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def test_a_damaged_tensor_is_found(llama, tmp_path, monkeypatch):
    own = gguf_file.tensors

    def damaged(*words):
        for number, (name, values) in enumerate(own(*words)):
            yield name, values * 1.5 if number == 5 else values

    monkeypatch.setattr(gguf_file, "tensors", damaged)
    with pytest.raises(RunError, match="does not compute what the model does"):
        gguf_file.write(str(llama), tmp_path / "x.gguf", "f32", tmp_path / "Modelfile")


def test_a_wrong_permutation_is_found(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "interleaved", lambda values, heads: values)
    with pytest.raises(RunError, match="does not compute what the model does"):
        gguf_file.write(str(llama), tmp_path / "x.gguf", "f32", tmp_path / "Modelfile")


@pytest.mark.parametrize("part", ["chat_template", "vocabulary", "merges", "end_of_turn"])
def test_a_tokenizer_that_is_not_the_models_is_found(llama, tmp_path, part):
    model, tokenizer = parts(llama)
    file = tmp_path / "x.gguf"
    with pytest.MonkeyPatch.context() as patch:
        if part == "chat_template":
            patch.setattr(gguf_file, part, lambda tokenizer: TEMPLATE.replace("assistant", "user"))
        elif part == "end_of_turn":
            patch.setattr(gguf_file, part, lambda *words: 7)
        elif part == "merges":
            patch.setattr(gguf_file, part, lambda tokenizer, own=gguf_file.merges: own(tokenizer)[:-1])
        else:
            tokens, types = gguf_file.vocabulary(tokenizer, 300)
            tokens[20], tokens[21] = tokens[21], tokens[20]
            patch.setattr(gguf_file, part, lambda *words: (tokens, types))
        gguf_file.write_file(model, tokenizer, file, "f32")
    with pytest.raises(RunError, match="does not agree with the model"):
        gguf_file.compare(model, tokenizer, file, "f32")


def test_a_wrong_size_is_found(llama, tmp_path):
    model, tokenizer = parts(llama)
    file = tmp_path / "x.gguf"
    with pytest.MonkeyPatch.context() as patch:
        own = gguf_file.sizes
        patch.setattr(gguf_file, "sizes", lambda *words: own(*words) | {"{arch}.rope.freq_base": 20_000.0})
        gguf_file.write_file(model, tokenizer, file, "f32")
    with pytest.raises(RunError, match=r"llama\.rope\.freq_base"):
        gguf_file.compare(model, tokenizer, file, "f32")


def test_what_gguf_has_no_place_for_is_refused_in_words(llmkit, tmp_path):
    BertForMaskedLM(
        BertConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(tmp_path / "bert")
    byte_tokenizer().save_pretrained(tmp_path / "bert")
    done = llmkit("export", str(tmp_path / "bert"), "--output", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert "llmkit writes llama (and SmolLM), qwen2, qwen3 and gpt2" in done.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="rotary embedding of the type linear"):
        scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
        gguf_file.architecture_of(LlamaConfig(**ROTARY, rope_parameters=scaled))
    with pytest.raises(UserError, match="activation_function = relu"):
        gguf_file.architecture_of(GPT2Config(activation_function="relu"))


def test_a_tokenizer_that_llama_cpp_cannot_name_is_refused(llama, tmp_path):
    from tokenizers import pre_tokenizers
    from transformers import BertTokenizerFast

    _, tokenizer = parts(llama)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(UserError, match="pre-tokenizer \\(Whitespace, ByteLevel\\) is not one that it knows"):
        gguf_file.pre_tokenizer_of(tokenizer)
    words = BertTokenizerFast(vocab={"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "[MASK]": 4, "a": 5})
    with pytest.raises(UserError, match="it is WordPiece"):
        gguf_file.pre_tokenizer_of(words)


def test_a_run_of_ones_own_and_an_adapter_on_it_are_exported(llmkit, workplace):
    made = CAUSAL.replace("n_embd = 32", "n_embd = 32\neos_token_id = 0")
    Path("own.toml").write_text(made)
    assert llmkit("pretrain", "own.toml", "--output-dir", "run").exit_code == 0
    done = llmkit("export", "run", "--output", "files", "--precision", "f32")
    assert done.exit_code == 0, done.stderr
    assert Path("files/run-f32.gguf").is_file()
    assert "{{ .Prompt }}" in Path("files/Modelfile").read_text()
    done = llmkit("export", "run", "--output", "files")
    assert done.exit_code == 2
    assert "already contains other files" in done.stderr
    words = ["model.name=run", "lora.r=2", "trainer.max_steps=2"]
    done = llmkit("pretrain", "own.toml", *words, "--output-dir", "adapter")
    assert done.exit_code == 0, done.stderr
    done = llmkit("export", "adapter", "--output", "adapted", "--precision", "f32")
    assert done.exit_code == 0, done.stderr
    assert "merged `adapter`" in done.stderr


def test_ollama_is_told_the_template_of_one_turn(llama):
    model, tokenizer = parts(llama)
    text = gguf_file.modelfile_of(model, tokenizer, "x.gguf")
    assert 'PARAMETER stop "<|endoftext|>"' in text
    assert (
        'TEMPLATE """{{ if .System }}<|system|>{{ .System }}<|endoftext|>{{ end }}'
        '<|user|>{{ .Prompt }}<|endoftext|><|assistant|>{{ .Response }}"""' in text
    )


LLAMA_CPP = shutil.which("llama-cli") or shutil.which("llama-completion")


@pytest.mark.skipif(LLAMA_CPP is None, reason="llama.cpp is not installed")
def test_llama_cpp_writes_the_same_greedy_text(llmkit, workplace):
    Path("own.toml").write_text(CAUSAL.replace("n_embd = 32", "n_embd = 32\neos_token_id = 0"))
    assert llmkit("pretrain", "own.toml", "--output-dir", "run").exit_code == 0
    assert llmkit("export", "run", "--output", "files", "--precision", "f32").exit_code == 0
    said = llmkit("generate", "the fox", "--model", "run", "do_sample=false", "max_new_tokens=12").stdout
    words = [
        LLAMA_CPP,
        "-m",
        "files/run-f32.gguf",
        "-p",
        "the fox",
        "-n",
        "12",
        "--temp",
        "0",
        "-no-cnv",
        "--simple-io",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    assert said.strip() in done.stdout
