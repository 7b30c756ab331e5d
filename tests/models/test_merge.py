"""Merging: a run of every task that trains adapters, every start of an adapter, and what cannot be merged."""

import json
import re
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import classifier, refused
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    set_seed,
)

from llmkit.models import loading
from llmkit.models.config import load_config
from llmkit.models.merge import merge
from llmkit.models.trainable import save_as_lora
from llmkit.models.weights import create_model
from llmkit.recipe.schema import Model

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (*SPECIAL, "the", "a", "fox", "hen", "owl", "saw", "fed", "who", "user", "assistant")
CHATML = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' [SEP] ' }}{% endfor %}"
SIZES = {"vocab_size": 24, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
HALF = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}  # of BART
BART = {f"{half}_{name}": size for half in ("encoder", "decoder") for name, size in HALF.items()}
BASES = {
    "bert": ("AutoModelForMaskedLM", {**BERT, "initializer_range": 0.3}),
    "gpt2": ("AutoModelForCausalLM", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 32}),
    "llama": (
        "AutoModelForCausalLM",
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    ),
    "bart": ("AutoModelForSeq2SeqLM", {**BART, "d_model": 16, "init_std": 0.3, "decoder_start_token_id": 3}),
}
TEXT = 'block_size = 8\nsample_by = "line"'
# The task's base, the class of its models and its data.
TASKS = {
    "causal-lm": ("gpt2", "AutoModelForCausalLM", TEXT),
    "masked-lm": ("bert", "AutoModelForMaskedLM", TEXT),
    "denoising": ("bart", "AutoModelForSeq2SeqLM", f"{TEXT}\ncorruption.infilling = 1.0"),
    "text-classification": ("bert", "AutoModelForSequenceClassification", "max_length = 16"),
    "question-answering": ("bert", "AutoModelForQuestionAnswering", "max_length = 16\nstride = 4"),
    "token-classification": ("bert", "AutoModelForTokenClassification", "max_length = 16"),
    "multiple-choice": ("bert", "AutoModelForMultipleChoice", "max_length = 16"),
    "seq2seq": ("bart", "AutoModelForSeq2SeqLM", "max_length = 16\nmax_target_length = 8"),
    "chat": ("gpt2", "AutoModelForCausalLM", "max_length = 32"),
}
RECIPE = """
task = "{task}"
model.name = "{base}"
lora.r = 2
[data]
path = "{path}"
validation_fraction = 0.25
{data}
[trainer]
max_steps = 2
per_device_train_batch_size = 4
learning_rate = 0.1
logging_steps = 1
"""
# What peft says of adapters on the embedding and on the output layer.
SAID = ("Model has `tie_word_embeddings", "fan_in_fan_out is set", "Setting `save_embedding_layers`")
QUIET = [f"ignore:{words}:UserWarning" for words in SAID]
IDS = torch.tensor([[2, 5, 7, 10, 6, 9, 3], [2, 12, 9, 10, 5, 8, 3]])


def rows(task):
    """Eight rows of the task's data."""
    for number in range(8):
        one, other = ("fox", "hen", "owl")[number % 3], ("hen", "owl")[number % 2]
        text = f"the {one} saw the {other}"
        answer = {"text": [one], "answer_start": [4]}
        yield {
            "text-classification": {"text": text, "label": one},
            "question-answering": {"question": "who saw", "context": text, "answers": answer},
            "token-classification": {"tokens": text.split(), "tags": ["O", "B-WHO", "O", "O", "O"]},
            "multiple-choice": {"question": text, "choices": [one, other, "a"], "answer": number % 3},
            "seq2seq": {"source": text, "target": f"{other} {one}"},
            "chat": {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": one}]},
        }[task]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a tiny model of each kind, whose weights are large enough to matter, and data and recipes."""
    folder = tmp_path_factory.mktemp("merging")
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    words = PreTrainedTokenizerFast(tokenizer_object=backend, **special, bos_token="[CLS]", eos_token="[SEP]")
    words.chat_template = CHATML
    for kind, (model_class, sizes) in BASES.items():
        set_seed(1)
        config = AutoConfig.for_model(kind, **SIZES, **sizes)
        getattr(transformers, model_class).from_config(config).save_pretrained(folder / kind)
        words.save_pretrained(folder / kind)
    (folder / "text.txt").write_text("the fox saw the hen\nthe owl fed a fox\n" * 10)
    for task, (base, _, data) in TASKS.items():
        path = folder / ("text.txt" if TEXT in data else f"{task}.jsonl")
        if TEXT not in data:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows(task)))
        (folder / f"{task}.toml").write_text(RECIPE.format(task=task, base=folder / base, path=path, data=data))
    return folder


@pytest.fixture
def train(home, tmp_path, monkeypatch, llmkit):
    """A function that runs a task's recipe into `run`."""
    monkeypatch.chdir(tmp_path)

    def call(task, *words, code=0):
        verb = "pretrain" if TEXT in TASKS[task][2] else "finetune"
        done = llmkit(verb, f"{home}/{task}.toml", *words, "--output-dir", "run")
        assert done.exit_code == code, done.stderr
        return done.stderr

    return call


@pytest.fixture
def merged(llmkit):
    """A function from a run to the outputs of what it merges to, after a look at the other ways to load it."""

    def call(run, model_class, base):
        config = AutoConfig.from_pretrained(f"{run}/model_config.json")
        expected = outputs(loading.load_model(run, model_class))
        torch.manual_seed(5)  # what a start draws here is not what it drew in the run
        plain = PeftModel.from_pretrained(model_class.from_pretrained(base, config=config), run)
        assert_close(outputs(plain), expected)
        done = llmkit("merge", run, "--output", "whole")
        assert done.exit_code == 0, done.stderr
        whole, report = model_class.from_pretrained("whole", output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["mismatched_keys"]
        assert_close(outputs(whole), expected)
        return expected

    return call


def outputs(model):
    """All logits of a few tokens; a batch of multiple choice is one example."""
    inner = loading.without_adapter(model)
    ids = IDS[None] if "MultipleChoice" in type(inner).__name__ else IDS
    more = {"decoder_input_ids": IDS} if inner.config.is_encoder_decoder else {}
    with torch.no_grad():
        found = model.eval()(input_ids=ids, **more)
    return torch.cat([found[key].flatten() for key in ("logits", "start_logits", "end_logits") if key in found])


@pytest.mark.parametrize("task", TASKS)
def test_a_run_of_every_task_merges_to_the_same_outputs(task, train, merged, home):
    base, name, _ = TASKS[task]
    train(task)
    merged("run", getattr(transformers, name), home / base)
    learned = [tensor for name, tensor in load_file("run/adapter_model.safetensors").items() if "lora_B" in name]
    assert all(tensor.abs().max() > 1e-3 for tensor in learned)


@pytest.mark.parametrize("base", ["gpt2", "bart"])
def test_a_classifier_merges_whose_decoder_looks_at_the_last_token(base, train, merged, home):
    train("text-classification", f"model.name={home / base}")
    merged("run", AutoModelForSequenceClassification, home / base)


@pytest.mark.parametrize(
    "options",
    [
        ["lora.use_dora=true", "lora.bias=all"],
        ["lora.use_rslora=true", "lora.rank_pattern.query=3", "lora.modules_to_save=[classifier, LayerNorm]"],
        ["lora.target_modules=[]", "lora.target_parameters=[attention.self.query.weight]"],
        ["lora.target_modules=[word_embeddings, query]", "lora.lora_dropout=0.1"],
        ["lora.trainable_token_indices=[5, 6]"],
        *(["lora.init_lora_weights=" + start] for start in ("gaussian", "orthogonal", "mica", "false")),
    ],
    ids=" ".join,
)
def test_an_adapter_of_every_kind_merges_to_the_same_outputs(options, train, merged, home):
    train("text-classification", *(re.sub(r"([A-Za-z_][\w.]+)(?=[,\]])", r'"\1"', option) for option in options))
    merged("run", AutoModelForSequenceClassification, home / "bert")


@pytest.mark.parametrize(
    ("start", "options"),
    [
        ("pissa", []),
        ("pissa_niter_2", []),
        (
            "olora",
            ["lora.use_dora=true", "lora.use_rslora=true", "lora.rank_pattern.query=3", "lora.alpha_pattern.value=5"],
        ),
    ],
    ids=["pissa", "pissa by subspaces", "olora with options"],
)
def test_a_start_that_changes_the_base_is_saved_as_a_plain_adapter(start, options, train, merged, home, llmkit):
    evaluated = ["trainer.save_steps=1", "trainer.eval_strategy=steps", "trainer.eval_steps=1"]
    best = ["trainer.load_best_model_at_end=true", "trainer.metric_for_best_model=eval_loss"]
    train("text-classification", f"lora.init_lora_weights={start}", *options, *evaluated, *best)
    settings = json.loads(Path("run/adapter_config.json").read_text())
    assert (settings["init_lora_weights"], settings["r"]) == (True, 4)
    found = merged("run", AutoModelForSequenceClassification, home / "bert")
    figures = json.loads(Path("run/run.json").read_text())["metrics"]  # as the model stood when training was over
    again = json.loads(llmkit("evaluate", "run").stdout)
    assert again["eval_loss"] == pytest.approx(figures["eval_loss"], rel=1e-5)
    losses = [loss for _, loss in entries("eval_loss")]
    shutil.rmtree("whole")
    best_step = losses.index(min(losses[:2])) + 1
    assert_close(merged(f"run/checkpoint-{best_step}", AutoModelForSequenceClassification, home / "bert"), found)


def entries(key):
    """The values of a metric in the run's log, each with its step."""
    logged = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    return [(entry["step"], entry[key]) for entry in logged if key in entry]


@pytest.mark.filterwarnings(*QUIET)
def test_such_a_start_of_the_output_layer_is_saved_as_a_plain_adapter(train, merged, home, llmkit):
    layers = 'lora.target_modules=["q_proj", "lm_head"]'
    train("chat", f"model.name={home / 'llama'}", "lora.init_lora_weights=olora", layers)
    merged("run", AutoModelForCausalLM, home / "llama")
    figures = json.loads(Path("run/run.json").read_text())["metrics"]
    again = json.loads(llmkit("evaluate", "run").stdout)
    assert again["eval_loss"] == pytest.approx(figures["eval_loss"], rel=1e-5)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora"])
def test_a_start_that_changes_the_base_goes_on_to_the_last_bit(start, train, merged, home):
    words = ("text-classification", f"lora.init_lora_weights={start}", "lora.lora_dropout=0.1")
    train(*words, "trainer.save_steps=1", "trainer.max_steps=3")
    weights, losses = load_file("run/adapter_model.safetensors"), entries("loss")
    shutil.rmtree("run/checkpoint-3")
    Path("run/adapter_model.safetensors").unlink()
    record = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps({**record, "status": "stopped"}))
    said = train(*words, "trainer.save_steps=1", "trainer.max_steps=3", "--resume")
    assert "run/checkpoint-2\n" in said[said.index("resuming from") :]
    assert entries("loss") == losses
    found = load_file("run/adapter_model.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    merged("run", AutoModelForSequenceClassification, home / "bert")


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_an_adapter_goes_on_from_the_start_that_it_was_saved_with(kind, home, tmp_path):
    def made(seed):
        name = str(home / kind)
        config, _ = load_config(Model(name=name), finetuning=True)
        lora = {"r": 2, "init_lora_weights": "pissa_niter_0"}  # drawn from the seed, and far from the exact one
        task_type = {"bert": "SEQ_CLS", "gpt2": "CAUSAL_LM"}[kind]
        model_class = {"bert": AutoModelForSequenceClassification, "gpt2": AutoModelForCausalLM}[kind]
        return create_model(Model(name=name), config, model_class, seed, lora, task_type=task_type)[0]

    model, other = made(1), made(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1 if parameter.requires_grad else 0)
    expected = outputs(model)
    for step in ("first", "second"):
        model.save_pretrained(tmp_path / step)
        save_as_lora(model, tmp_path / step)
        other.load_adapter(tmp_path / step, "default", is_trainable=True)
        assert_close(outputs(other), expected)
        model, other = other, made(3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["lora.init_lora_weights=eva"], 'lora.init_lora_weights: "eva" is not in llmkit: it needs the activations'),
        (["lora.init_lora_weights=corda"], 'lora.init_lora_weights: "corda" is not in llmkit: it needs the activ'),
        (["lora.init_lora_weights=lora_ga"], 'lora.init_lora_weights: "lora_ga" is not in llmkit: it needs the grad'),
        (
            ["lora.init_lora_weights=loftq"],
            'lora.init_lora_weights: "loftq" is not in llmkit: its adapter fits only the base',
        ),
        (["lora.eva_config.rho=2.0"], "lora.eva_config: not in llmkit: it belongs to an initialization"),
        (["lora.kasa_config.beta=0.1"], "lora.kasa_config: not in llmkit: its loss needs a term"),
        (["lora.arrow_config.top_k=2"], "lora.arrow_config: not in llmkit: it chooses between adapters"),
        (["lora.layer_replication=[[0, 1]]"], "lora.layer_replication: not in llmkit: such a model can neither"),
        (
            ["lora.init_lora_weights=olora", "model.load_in_4bit=true"],
            'lora.init_lora_weights: "olora" and `model.load_in_4bit` exclude each other',
        ),
        (
            ["lora.init_lora_weights=pissa", 'lora.target_parameters=["x"]'],
            'lora.init_lora_weights: "pissa" and `lora.target_parameters` exclude each other',
        ),
    ],
)
def test_an_adapter_that_would_not_be_what_it_says_is_refused_before_anything_is_read(options, said, train):
    assert f"on the command line\n  {said}" in train("text-classification", "model.name=nowhere", *options, code=2)
    assert not Path("run").exists()


@pytest.mark.filterwarnings(*QUIET)
@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        (
            "text-classification",
            ["lora.r=17"],
            "lora.r = 17 is too large for bert.encoder.layer.0.attention.self.query, which allows 16 at most",
        ),
        (
            "text-classification",
            ['lora.target_modules=["word_embeddings"]'],
            "lora.init_lora_weights works for linear layers only, and bert.embeddings.word_embeddings is not one",
        ),
        (
            "causal-lm",
            ['lora.target_modules=["c_attn", "lm_head"]'],
            "lora.init_lora_weights would change the weights of lm_head, which another layer shares (tied)",
        ),
    ],
)
def test_layers_that_cannot_start_so_are_named(task, options, said, train):
    assert said in train(task, "lora.init_lora_weights=pissa", *options, code=2)


@pytest.mark.filterwarnings(*QUIET)
@pytest.mark.filterwarnings(*QUIET)
@pytest.mark.parametrize(
    "option", ['target_modules=["lm_head"]', 'target_modules=["wte", "c_attn"]', 'modules_to_save=["lm_head"]']
)
def test_weights_that_were_tied_are_merged_where_the_adapter_is(option, train, merged, home):
    train("causal-lm", f"lora.{option}")
    merged("run", AutoModelForCausalLM, home / "gpt2")
    whole = AutoModelForCausalLM.from_pretrained("whole")
    assert not torch.equal(whole.lm_head.weight, whole.transformer.wte.weight)


def test_an_adapter_that_depends_on_the_text_cannot_be_merged(train, llmkit):
    train("causal-lm", "lora.alora_invocation_tokens=[5, 6]")
    done = llmkit("merge", "run", "--output", "whole")
    assert done.exit_code == 2
    assert "the adapter `run` cannot be merged into its base model: aLoRA does not support merging" in done.stderr
    assert not Path("whole").exists()


def test_what_cannot_be_merged(base, tmp_path):
    assert "has no adapter to merge" in refused(merge, base("bert"), str(tmp_path / "out"))
    model, _ = classifier(base("bert"), lora={})
    model.save_pretrained(tmp_path / "run")
    loading.save_config(model, tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    assert "already contains other files" in refused(merge, str(tmp_path / "run"), str(tmp_path / "full"))
    assert "cannot be written" in refused(merge, str(tmp_path / "run"), str(tmp_path / "full/notes.txt/out"))
    masked = AutoModelForMaskedLM.from_pretrained(base("bert"))
    peft.get_peft_model(masked, peft.LoraConfig()).save_pretrained(tmp_path / "foreign")
    assert "cannot tell which task" in refused(merge, str(tmp_path / "foreign"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_merged_model_that_computes_something_else_is_not_written(base, tmp_path):
    model, _ = classifier(base("bert"), lora={})
    model.save_pretrained(tmp_path / "run")
    loading.save_config(model, tmp_path / "run")
    weights = load_file(tmp_path / "run/adapter_model.safetensors")
    next(tensor for name, tensor in weights.items() if "lora_B" in name).fill_(float("inf"))
    save_file(weights, tmp_path / "run/adapter_model.safetensors", {"format": "pt"})
    (tmp_path / "out").mkdir()
    with pytest.raises(RuntimeError, match="the merged model does not match"):
        merge(str(tmp_path / "run"), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == ["out"]
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_merged_model_is_rounded_as_asked(precision, dtype, base, tmp_path, capsys):
    model, _ = classifier(base("bert"), lora={})
    model.save_pretrained(tmp_path / "run")
    loading.save_config(model, tmp_path / "run")
    merge(str(tmp_path / "run"), str(tmp_path / "fp32"))
    merge(str(tmp_path / "run"), str(tmp_path / "half"), precision)
    whole = load_file(tmp_path / "fp32/model.safetensors")
    half = load_file(tmp_path / "half/model.safetensors")
    assert half.keys() == whole.keys()
    assert all(torch.equal(half[name], tensor.to(dtype)) for name, tensor in whole.items())
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert f"in {precision} (" in capsys.readouterr().err


def test_a_merged_model_is_there_whole_or_not_at_all(base, tmp_path, monkeypatch):
    model, _ = classifier(base("bert"), lora={})
    model.save_pretrained(tmp_path / "run")
    loading.save_config(model, tmp_path / "run")

    def full(self, directory):
        assert (Path(directory) / "model.safetensors").exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
    assert "cannot be written: No space left" in refused(merge, str(tmp_path / "run"), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
