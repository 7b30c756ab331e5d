"""Models whose files are odd: what upstream fails on is answered in words, with the folder and the file."""

import json
import shutil
from pathlib import Path

import peft
import pytest
from tiny_models import classifier, refused
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from llmkit import hub, tasks
from llmkit.models import loading
from llmkit.models.chat_template import ChatTemplate
from llmkit.models.config import load_config
from llmkit.models.weights import num_parameters
from llmkit.recipe.schema import Model
from llmkit.runs import finished


@pytest.fixture
def folder(base, tmp_path):
    """A function that copies a model and changes keys of one of its files."""

    def spoil(kind: str, file: str = "", **keys: object) -> str:
        place = Path(shutil.copytree(base(kind), tmp_path / kind))
        if file:
            content = json.loads((place / file).read_text()) if (place / file).exists() else {}
            (place / file).write_text(json.dumps({**content, **keys}))
        return str(place)

    return spoil


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "hidden_size", "x"),
        ("config.json", "vocab_size", None),
        ("config.json", "num_hidden_layers", [1]),
        ("config.json", "model_type", 3),
        ("config.json", "id2label", 7),
        ("config.json", "architectures", 3),
        ("tokenizer_config.json", "pad_token", []),
        ("tokenizer_config.json", "tokenizer_class", {}),
        ("tokenizer_config.json", "model_max_length", "long"),
        ("tokenizer.json", "model", None),
        ("tokenizer.json", "added_tokens", [{}]),
        ("tokenizer.json", "version", 9),
    ],
)
def test_a_value_of_another_kind_is_refused_or_unused(file, key, value, folder):
    name = folder("bert", file, **{key: value})

    def use():
        if file == "config.json":
            finished.task_of(name)
            config, _ = load_config(Model(name=name), finetuning=True)
            num_parameters(Model(name=name), config, tasks.model_class("masked-lm"))
        return loading.load_tokenizer(name)

    if (key, value) in (("architectures", 3), ("version", 9)):
        if key == "architectures":
            assert "has no head that llmkit can predict with" in refused(use)
        return
    said = refused(use)
    assert f"the model `{name}` could not be loaded: " in said
    assert file in said
    assert "\n" not in said.partition("\nhint: ")[0]


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "is not JSON"), ("[" * 100_000, "is not JSON"), ("\xff", "is not JSON"), ("[]", "is not a JSON object")],
)
def test_a_file_that_is_no_json_is_named(file, text, said, folder):
    name = folder("bert")
    Path(name, file).write_bytes(text.encode("latin-1"))
    load = loading.load_tokenizer if "tok" in file else finished.task_of
    assert f"the model `{name}` could not be loaded: {file} {said}" in refused(load, name)


@pytest.mark.parametrize(
    ("key", "value"), [("num_attention_heads", 0), ("num_attention_heads", 7), ("hidden_act", "x")]
)
def test_sizes_that_no_model_can_have_are_refused(key, value, folder):
    name = folder("bert", "config.json", **{key: value})

    def build():
        config, _ = load_config(Model(name=name), finetuning=True)
        num_parameters(Model(name=name), config, AutoModelForSequenceClassification)

    assert "BertConfig does not work with these settings" in refused(build)
    assert f"the model `{name}` could not be loaded" in refused(
        loading.load_model, name, AutoModelForSequenceClassification
    )


ODD = [
    ("eos_token_id", "x"),
    ("max_length", {}),
    ("num_beams", "4"),
    ("eos_token_id", 10**30),
    ("eos_token_id", -float("inf")),
    ("eos_token_id", [10**30]),
]


@pytest.mark.parametrize(("key", "value"), ODD)
def test_odd_generation_settings_are_refused_before_they_are_used(key, value, folder):
    name = folder("gpt2", "generation_config.json", **{key: value})
    said = refused(loading.load_model, name, AutoModelForCausalLM)
    assert key in said
    assert name in said


def test_generation_settings_that_are_fine(folder):
    fine = {"eos_token_id": [1, 2], "max_length": 20, "do_sample": True, "temperature": 1, "of_a_later_version": {}}
    loading.load_model(folder("gpt2", "generation_config.json", **fine), AutoModelForCausalLM)


@pytest.mark.parametrize(
    "change", [{"base_model_name_or_path": None}, {"revision": 3}, {"base_model_name_or_path": []}]
)
def test_an_adapter_that_names_no_model_is_refused(change, base, tmp_path):
    model, _ = classifier(base("bert"), lora={})
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    for use in (finished.task_of, lambda name: loading.load_model(name, AutoModelForSequenceClassification)):
        assert "adapter_config.json names no model as base_model_name_or_path" in refused(use, str(tmp_path))


def test_an_adapter_of_another_kind_is_refused(base, tmp_path):
    model, _ = classifier(base("bert"), lora={})
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    for change in ({"peft_type": "X"}, {"r": "x"}, {"target_modules": 3}):
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
        said = refused(loading.load_model, str(tmp_path), AutoModelForSequenceClassification)
        assert "could not be loaded: " in said
    assert peft.PeftType.LORA


def test_a_mistake_of_ours_is_not_taken_for_the_models():
    with pytest.raises(ZeroDivisionError), hub.loading("org/good", "model"):
        1 / 0  # noqa: B018


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{{ messages[9].x.y }}",
        "{{ messages + 1 }}",
        "{{ {}['x'].y }}",
        "{% for",
        "{{ x.y.z }}",
        "{{ 9 ** 'x' }}",
    ],
)
def test_a_chat_template_that_fails_is_refused(template, base):
    tokenizer = loading.load_tokenizer(base("bert"))
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=r"the chat template (refuses|fails on) it: "):
        ChatTemplate(tokenizer).write([{"role": "user", "content": "a"}])
