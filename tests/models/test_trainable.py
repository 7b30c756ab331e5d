"""What is trained: the head, the top layers, or an adapter and what is saved beside it."""

import peft
import pytest
import torch
from tiny_models import DECODERS, IDS, LABELS, NEW, OWN, SIZES, VOCABULARY, classifier, outputs, refused, trainable
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from llmkit.models import loading
from llmkit.models.config import load_config
from llmkit.models.merge import merge
from llmkit.models.weights import create_model
from llmkit.recipe.schema import Model

# What is trained whole beside an adapter: modernbert's head exists already, and belongs to the classifier.
WHOLE = {**NEW, "modernbert": {"head", "classifier"}}


def train_a_little(model):
    """Move every parameter that is trained, as training would (lora_B is zero before it)."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)


@pytest.mark.parametrize("kind", NEW)
def test_the_head_alone_is_trained(kind, base):
    model, _ = classifier(base(kind), train="head")
    tops = tuple(f"{name}." for name in WHOLE[kind])
    assert trainable(model) == {name for name, _ in model.named_parameters() if name.startswith(tops)}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.config.pad_token_id = 0
    model(input_ids=IDS, labels=torch.tensor([0, 2])).loss.backward()
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == trainable(model)


@pytest.mark.parametrize(
    ("kind", "part", "layers", "others"),
    [
        ("bert", "top-2", ["bert.encoder.layer.1.", "bert.encoder.layer.2."], ["bert.pooler.", "classifier."]),
        ("bert", "top-3", ["bert.encoder.layer."], ["bert.pooler.", "classifier."]),
        ("distilbert", "top-1", ["distilbert.transformer.layer.2."], ["pre_classifier.", "classifier."]),
        ("roberta", "top-1", ["roberta.encoder.layer.2."], ["classifier."]),
        ("albert", "top-1", ["albert.encoder.albert_layer_groups."], ["albert.pooler.", "classifier."]),
        ("modernbert", "top-1", ["model.layers.2."], ["model.final_norm.", "head.", "classifier."]),
        ("electra", "top-1", ["electra.encoder.layer.2."], ["classifier."]),
        ("gpt2", "top-2", ["transformer.h.1.", "transformer.h.2."], ["transformer.ln_f.", "score."]),
        ("llama", "top-1", ["model.layers.2."], ["model.norm.", "score."]),
    ],
)
def test_the_top_layers_are_trained_and_what_comes_after_them(kind, part, layers, others, base):
    model, _ = classifier(base(kind), train=part)
    expected = {name for name, _ in model.named_parameters() if name.startswith((*layers, *others))}
    assert all(any(name.startswith(prefix) for name in expected) for prefix in (*layers, *others))
    assert trainable(model) == expected


def test_an_embedding_behind_the_layers_stays_frozen(tmp_path):
    config = AutoConfig.for_model("mpnet", **SIZES)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    model, _ = classifier(str(tmp_path), train="top-1")
    assert "mpnet.encoder.relative_attention_bias.weight" not in trainable(model)
    assert any(name.startswith("mpnet.encoder.layer.2.") for name in trainable(model))


@pytest.mark.parametrize(("encoder", "decoder"), [(2, 2), (1, 2)])
def test_of_two_stacks_both_are_trained_if_they_are_as_high(encoder, decoder, tmp_path):
    sizes = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": VOCABULARY}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 24}
    config = AutoConfig.for_model("bart", encoder_layers=encoder, decoder_layers=decoder, **sizes)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    names = trainable(classifier(str(tmp_path), train="top-1")[0])
    assert any(name.startswith("model.decoder.layers.1.") for name in names)
    assert not any(name.startswith("model.decoder.layers.0.") for name in names)
    assert any(name.startswith("model.encoder.") for name in names) == (encoder == decoder)


def test_more_layers_than_there_are(base):
    assert "BertForSequenceClassification has only 3 layers" in refused(classifier, base("bert"), train="top-4")


def test_the_head_of_a_language_model(base):
    def language_model(kind, part):
        table = Model(name=base(kind), train=part)
        return create_model(table, load_config(table)[0], AutoModelForCausalLM, 0, generation={})[0]

    said = refused(language_model, "gpt2", "head")
    assert "GPT2LMHeadModel has no separate head: its output layer is its input embeddings" in said
    assert trainable(language_model("llama", "head")) == {"lm_head.weight"}  # not tied
    top = trainable(language_model("gpt2", "top-1"))
    assert all(name.startswith(("transformer.h.2.", "transformer.ln_f.")) for name in top)


@pytest.mark.parametrize("kind", NEW)
def test_an_adapter_trains_its_layers_and_the_head_alone(kind, base):
    model, _ = classifier(base(kind), lora={"r": 2})
    adapted = {name.split(".lora_")[0] for name in trainable(model) if ".lora_" in name}
    layers = 1 if kind == "albert" else 3  # albert's share their weights
    assert len(adapted) == layers * (1 if kind in ("gpt2", "modernbert") else 2)
    whole = {name for name in trainable(model) if ".lora_" not in name}
    plain, _ = classifier(base(kind))
    tops = tuple(f"{name}." for name in WHOLE[kind])
    short = {name.removeprefix("base_model.model.").replace("modules_to_save.default.", "") for name in whole}
    assert short == {name for name, _ in plain.named_parameters() if name.startswith(tops)}
    inside = dict(model.get_base_model().named_parameters())
    for name, parameter in plain.named_parameters():  # what is frozen is what was there, and the head starts from it
        place, leaf = name.rsplit(".", 1)
        copies = [inside.get(p) for p in (name, f"{place}.base_layer.{leaf}")]
        if name in short:
            copies += [value for path, value in inside.items() if path.replace("modules_to_save.default.", "") == name]
        assert any(copied is not None and torch.equal(copied, parameter) for copied in copies), name


TASKS = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
    "CAUSAL_LM": AutoModelForCausalLM,
    None: AutoModelForMaskedLM,
}


@pytest.mark.parametrize(
    ("kind", "task_type"),
    [
        *((kind, "SEQ_CLS") for kind in NEW),
        *((kind, "QUESTION_ANS") for kind in ("bert", "distilbert", "albert")),
        *((kind, "CAUSAL_LM") for kind in DECODERS),
        ("bert", None),
    ],
)
def test_an_adapter_comes_back_and_merges_to_the_same_logits(kind, task_type, base, tmp_path, capsys):
    table = Model(name=base(kind))
    config, _ = load_config(table, finetuning=True)
    config.update(LABELS if task_type == "SEQ_CLS" else {})
    generation = {"max_new_tokens": 5} if task_type == "CAUSAL_LM" else None
    model, _ = create_model(table, config, TASKS[task_type], 0, {"r": 4}, generation, task_type)
    untrained = outputs(model)
    train_a_little(model)
    expected = outputs(model)
    assert (expected - untrained).abs().max() > 0.01
    run, merged = tmp_path / "run", tmp_path / "merged"
    model.save_pretrained(run)
    loading.save_config(model, run)
    if generation:
        model.generation_config.save_pretrained(run)
    (run / "run.json").write_text('{"task": "masked-lm"}' if task_type is None else "{}")

    again = loading.load_model(str(run), TASKS[task_type])
    assert not again.training
    assert_close(outputs(again), expected)
    labels = {"num_labels": 3} if task_type == "SEQ_CLS" else {}
    plain = TASKS[task_type].from_pretrained(base(kind), **labels)
    assert_close(outputs(peft.PeftModel.from_pretrained(plain, run)), expected)
    assert_close(outputs(TASKS[task_type].from_pretrained(run, **labels)), expected)  # transformers' own way

    merge(str(run), str(merged))
    whole, report = TASKS[task_type].from_pretrained(merged, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert_close(outputs(whole), expected)
    assert whole.config.id2label == again.config.id2label
    assert whole.config.id2label[0] == ("bad" if task_type == "SEQ_CLS" else "LABEL_0")
    assert AutoTokenizer.from_pretrained(merged)("w5").input_ids == [5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "run"]
    assert not (merged / "adapter_config.json").exists()
    if generation:
        assert whole.generation_config.max_new_tokens == 5
    assert "its logits differ by at most" in capsys.readouterr().err


def test_an_adapter_of_three_labels_needs_to_be_told_so_in_plain_transformers(base, tmp_path):
    model, _ = classifier(base("bert"), lora={})
    model.save_pretrained(tmp_path)
    loading.save_config(model, tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["albert", "mpnet", "smollm3", "camembert"])
def test_queries_and_values_are_adapted_where_peft_knows_no_layers(kind, tmp_path):
    config = AutoConfig.for_model(kind, **{**SIZES, **OWN.get(kind, {})})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    model, _ = classifier(str(tmp_path), lora={})
    adapted = {name.split(".lora_")[0].split(".")[-1] for name in trainable(model) if ".lora_" in name}
    expected = {"mpnet": {"q", "v"}, "smollm3": {"q_proj", "v_proj"}}
    assert adapted == expected.get(kind, {"query", "value"})


def test_layers_to_adapt_that_nobody_knows(tmp_path):
    config = AutoConfig.for_model("fnet", **SIZES)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    said = refused(classifier, str(tmp_path), lora={})
    assert "lora.target_modules" in said
    assert '"all-linear"' in said
    assert "its linear layers: classifier, dense, projection" in said
    model, _ = classifier(str(tmp_path), lora={"target_modules": "all-linear"})
    assert any("layer.2.output.dense.lora_A" in name for name in trainable(model))


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert"])
def test_what_is_trained_whole_is_not_adapted_too(kind, base):
    model, _ = classifier(base(kind), lora={"target_modules": "all-linear"})
    adapted = [name for name in trainable(model) if ".lora_" in name]
    assert len(adapted) >= 3 * 2 * 4
    assert not any(f".{module}." in name for name in adapted for module in WHOLE[kind])


def test_the_recipe_may_say_what_is_saved_beside_the_adapter(base):
    model, _ = classifier(base("modernbert"), lora={"modules_to_save": ["classifier"]})
    whole = {name for name in trainable(model) if ".lora_" not in name}
    assert whole == {f"base_model.model.classifier.modules_to_save.default.{leaf}" for leaf in ("weight", "bias")}
    model, _ = classifier(base("bert"), lora={"modules_to_save": ["classifier"]})
    assert any("bert.pooler.modules_to_save" in name for name in trainable(model))  # new, and lost if not saved


def test_a_language_model_saves_nothing_beside_its_adapter(base):
    table = Model(name=base("gpt2"))
    model, notes = create_model(table, load_config(table)[0], AutoModelForCausalLM, 0, {}, {}, "CAUSAL_LM")
    assert notes == []
    assert all(".lora_" in name for name in trainable(model))
    assert model.peft_config["default"].task_type == "CAUSAL_LM"
    assert model.peft_config["default"].fan_in_fan_out
