"""What is trained and what is not, adapters with their heads, and a finished model again: reloaded, merged."""

import sys
import types
from functools import cache
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    set_seed,
)

from llmkit.errors import UserError
from llmkit.models import loading
from llmkit.models.config import fit_to_tokenizer, load_config
from llmkit.models.merge import merge
from llmkit.models.weights import create_model
from llmkit.recipe.schema import Model
from llmkit.recipe.table import ReadOnly

VOCABULARY = 40
SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
SIZES |= {"max_position_embeddings": 24, "vocab_size": VOCABULARY}
SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
OWN = {
    "distilbert": {"hidden_dim": 32},
    "albert": {"embedding_size": 8},
    "gpt2": {"pad_token_id": None},
    "electra": {"embedding_size": 8},
    "llama": {"num_key_value_heads": 2},
    "modernbert": {"local_attention": 8},
}
DECODERS = ("gpt2", "llama")
# What a classifier made of each language model has that its weights do not hold.
NEW = {
    "bert": {"bert.pooler", "classifier"},
    "distilbert": {"pre_classifier", "classifier"},
    "roberta": {"classifier"},
    "albert": {"albert.pooler", "classifier"},
    "modernbert": {"classifier"},
    "electra": {"classifier"},
    "gpt2": {"score"},
    "llama": {"score"},
}
# What is trained whole beside an adapter: modernbert's head exists already, and belongs to the classifier.
WHOLE = {**NEW, "modernbert": {"head", "classifier"}}
LABELS = {"num_labels": 3, "id2label": {0: "bad", 1: "fair", 2: "good"}, "label2id": {"bad": 0, "fair": 1, "good": 2}}
IDS = torch.tensor([[5, 9, 13, 7], [8, 3, 21, 30]])


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A function from a model type to the folder of a tiny language model with a tokenizer."""

    @cache
    def made(kind: str) -> str:
        folder = tmp_path_factory.mktemp(kind)
        set_seed(1)
        config = AutoConfig.for_model(kind, **{**SIZES, **OWN.get(kind, {})})
        model_class = AutoModelForCausalLM if kind in DECODERS else AutoModelForMaskedLM
        model_class.from_config(config).save_pretrained(folder)
        words = WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w3")
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="w0").save_pretrained(folder)
        return str(folder)

    return made


def classifier(folder, seed=0, lora=None, **options):
    """`create_model` for three labels, and its notes."""
    table = Model(name=folder, **options)
    config, _ = load_config(table, finetuning=True)
    config.update(LABELS)
    return create_model(table, config, AutoModelForSequenceClassification, seed, lora, task_type="SEQ_CLS")


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def outputs(model, ids=IDS):
    """All logits in a row; inputs one by one, since a batch of GPT-2's needs a padding token."""
    with torch.no_grad():
        found = [model.eval()(input_ids=row[None]) for row in ids]
    return torch.cat([x[key].flatten() for x in found for key in ("logits", "start_logits", "end_logits") if key in x])


def train_a_little(model):
    """Move every parameter that is trained, as training would (lora_B is zero before it)."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)


def refused(call, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# ---- the configuration ----------------------------------------------------------------------------------------------


def test_attention_dropout_goes_in_pretraining_and_stays_in_finetuning(base):
    pretraining, notes = load_config(Model(name=base("bert")))
    assert pretraining.attention_probs_dropout_prob == 0
    assert len(notes) == 1
    finetuning, notes = load_config(Model(name=base("bert")), finetuning=True)
    assert finetuning.attention_probs_dropout_prob == 0.1
    assert notes == []


def test_an_adapter_is_no_model_to_start_from(base, tmp_path):
    model, _ = classifier(base("bert"), lora={})
    model.save_pretrained(tmp_path)
    message = refused(load_config, Model(name=str(tmp_path)))
    assert "is an adapter" in message
    assert f"llmkit merge {tmp_path} --output DIR, then model.name=DIR" in message


# ---- weights that are new -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NEW)
def test_new_weights_are_named_and_drawn_from_the_seed(kind, base):
    model, notes = classifier(base(kind), seed=7)
    assert len(notes) == 1
    assert set(notes[0].removeprefix("new in this run: ").split(", ")) == NEW[kind]
    stored = load_file(Path(base(kind), "model.safetensors"))
    fresh = dict(model.named_parameters())
    for name in [name for name in fresh if name in stored]:
        assert torch.equal(fresh.pop(name), stored[name]), name
    assert all(any(name.startswith(f"{module}.") for module in NEW[kind]) for name in fresh)
    again, other = (dict(classifier(base(kind), seed=seed)[0].named_parameters()) for seed in (7, 8))
    weights = [name for name in fresh if fresh[name].std() > 0]  # biases are zero
    assert weights
    assert all(torch.equal(fresh[name], again[name]) for name in fresh)
    assert not any(torch.equal(fresh[name], other[name]) for name in weights)


def test_a_tensor_that_only_pretraining_gives_must_be_there(base, tmp_path):
    weights = load_file(Path(base("bert"), "model.safetensors"))
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    AutoConfig.from_pretrained(base("bert")).save_pretrained(tmp_path)
    assert "lack 1 tensors of BertForSequenceClassification" in refused(classifier, str(tmp_path))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_head_of_another_size_is_new(kind, base, tmp_path):
    five = AutoModelForSequenceClassification.from_pretrained(base(kind), num_labels=5)
    five.save_pretrained(tmp_path)
    model, notes = classifier(str(tmp_path))
    head = {"bert": "classifier", "roberta": "classifier.out_proj"}[kind]
    assert notes[0].startswith(f"new in this run: {head} (")
    assert f"{head}.weight is [5, 16] there and [3, 16] here" in notes[0]
    kept = five.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items() if head not in name)
    assert model.get_submodule(head).weight.std() > 0


def test_no_other_size_is_made_to_fit(base):
    table = Model(name=base("bert"), config=ReadOnly({"max_position_embeddings": 12}))
    config, _ = load_config(table)
    message = refused(create_model, table, config, AutoModelForSequenceClassification, 0, task_type="SEQ_CLS")
    assert "bert.embeddings.position_embeddings.weight is [24, 16] there and [12, 16] here" in message
    table = Model(name=base("llama"), config=ReadOnly({"vocab_size": 50}))
    config, _ = load_config(table)
    assert "lm_head.weight is [40, 16]" in refused(create_model, table, config, AutoModelForCausalLM, 0, generation={})


# ---- what is trained ------------------------------------------------------------------------------------------------


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
    assert "BertForSequenceClassification has 3 layers" in refused(classifier, base("bert"), train="top-4")


def test_the_head_of_a_language_model(base):
    def language_model(kind, part):
        table = Model(name=base(kind), train=part)
        return create_model(table, load_config(table)[0], AutoModelForCausalLM, 0, generation={})[0]

    message = refused(language_model, "gpt2", "head")
    assert "GPT2LMHeadModel has no separate one, its output layer is its input embeddings" in message
    assert trainable(language_model("llama", "head")) == {"lm_head.weight"}  # not tied
    top = trainable(language_model("gpt2", "top-1"))
    assert all(name.startswith(("transformer.h.2.", "transformer.ln_f.")) for name in top)


# ---- adapters -------------------------------------------------------------------------------------------------------


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
    message = refused(classifier, str(tmp_path), lora={})
    assert "lora.target_modules" in message
    assert '"all-linear"' in message
    assert "its linear layers: classifier, dense, projection" in message
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


# ---- four bits ------------------------------------------------------------------------------------------------------


def test_four_bits_need_a_gpu_and_bitsandbytes(base, monkeypatch, no_network):
    table = Model(name="some/where", load_in_4bit=True)
    config = AutoConfig.from_pretrained(base("llama"))
    make = (create_model, table, config, AutoModelForCausalLM, 0, {}, {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "needs a CUDA GPU" in refused(*make)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert "pip install bitsandbytes" in refused(*make)
    assert no_network == []


@pytest.mark.parametrize(("bf16", "compute"), [(True, torch.bfloat16), (False, torch.float16)])
def test_four_bits_are_asked_for_as_in_qlora(bf16, compute, base, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    asked = {}

    class Boundary:  # from_pretrained up to where bitsandbytes would begin
        from_config = AutoModelForSequenceClassification.from_config

        @staticmethod
        def from_pretrained(name, quantization_config, **options):
            asked.update(vars(quantization_config), load_in_4bit=quantization_config.load_in_4bit)
            return AutoModelForSequenceClassification.from_pretrained(name, **options)

    table = Model(name=base("distilbert"), load_in_4bit=True)
    config, _ = load_config(table, finetuning=True)
    model, _ = create_model(table, config, Boundary, 0, {}, task_type="SEQ_CLS")
    assert asked["load_in_4bit"]
    assert asked["bnb_4bit_quant_type"] == "nf4"
    assert asked["bnb_4bit_use_double_quant"]
    assert asked["bnb_4bit_compute_dtype"] == compute
    assert set(asked["llm_int8_skip_modules"]) == {"pre_classifier", "classifier", "distilbert.pooler"}
    assert all(".lora_" in name or "classifier" in name for name in trainable(model))


def test_four_bits_leave_no_trace_in_the_saved_configuration(base, tmp_path):
    model, _ = classifier(base("bert"), lora={})
    model.config.quantization_config = {"load_in_4bit": True}
    loading.save_config(model, tmp_path)
    saved = AutoConfig.from_pretrained(tmp_path / loading.ADAPTED_CONFIG)
    assert not hasattr(saved, "quantization_config")
    assert saved.id2label == LABELS["id2label"]
    assert saved.architectures == ["BertForSequenceClassification"]


# ---- a finished model again -----------------------------------------------------------------------------------------


def test_a_whole_model_comes_back_in_fp32(base, tmp_path):
    model, _ = classifier(base("bert"))
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    again = loading.load_model(str(tmp_path), AutoModelForSequenceClassification)
    assert again.dtype == torch.float32
    assert not again.training
    assert_close(outputs(again), outputs(model.float()))
    config = AutoConfig.from_pretrained(tmp_path, attn_implementation="eager")
    assert loading.load_model(str(tmp_path), type(model), config).config._attn_implementation == "eager"


def test_random_weights_are_never_passed_off_as_a_model(base, tmp_path):
    message = refused(loading.load_model, base("bert"), AutoModelForSequenceClassification)
    assert "do not fit BertForSequenceClassification: 4 tensors" in message
    five = AutoModelForSequenceClassification.from_pretrained(base("roberta"), num_labels=5)
    five.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, num_labels=2)
    message = refused(loading.load_model, str(tmp_path), AutoModelForSequenceClassification, config)
    assert "such as classifier.out_proj.bias" in message


@pytest.mark.parametrize("lost", ["classifier.weight", "query.lora_A"])
def test_an_adapter_that_lacks_a_tensor_is_refused(lost, base, tmp_path):
    model, _ = classifier(base("electra"), lora={})
    model.save_pretrained(tmp_path)
    loading.save_config(model, tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    name = next(name for name in weights if lost in name or lost in name.replace("out_proj.", ""))
    del weights[name]
    save_file(weights, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    message = refused(loading.load_model, str(tmp_path), AutoModelForSequenceClassification)
    assert f"1 tensors are missing or have another size than its configuration gives, such as {name[17:]}" in message


def test_what_an_adapter_was_trained_on_and_did_not_save_is_not_made_up(base, tmp_path):
    plain = AutoModelForSequenceClassification.from_pretrained(base("bert"))  # with a random pooler
    peft.get_peft_model(plain, peft.LoraConfig(task_type="SEQ_CLS")).save_pretrained(tmp_path)
    message = refused(loading.load_model, str(tmp_path), AutoModelForSequenceClassification)
    assert "2 tensors are missing or have another size than its configuration gives, such as bert.pooler" in message


def test_an_adapter_whose_base_has_gone_says_so(base, tmp_path, no_network):
    model, _ = classifier(base("bert"), lora={})
    model.save_pretrained(tmp_path)
    settings = tmp_path / "adapter_config.json"
    settings.write_text(settings.read_text().replace(base("bert"), str(tmp_path / "gone")))
    message = refused(loading.load_model, str(tmp_path), AutoModelForSequenceClassification)
    assert f"the base of the adapter `{tmp_path}`: " in message
    assert str(tmp_path / "gone") in message


def test_what_cannot_be_merged(base, tmp_path):
    assert "holds no adapter" in refused(merge, base("bert"), str(tmp_path / "out"))
    model, _ = classifier(base("bert"), lora={})
    model.save_pretrained(tmp_path / "run")
    loading.save_config(model, tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    assert "holds other files" in refused(merge, str(tmp_path / "run"), str(tmp_path / "full"))
    assert "cannot be written" in refused(merge, str(tmp_path / "run"), str(tmp_path / "full/notes.txt/out"))
    masked = AutoModelForMaskedLM.from_pretrained(base("bert"))
    peft.get_peft_model(masked, peft.LoraConfig()).save_pretrained(tmp_path / "foreign")
    assert "does not say what its model is for" in refused(merge, str(tmp_path / "foreign"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_merged_model_that_computes_something_else_is_not_written(base, tmp_path):
    model, _ = classifier(base("bert"), lora={})
    model.save_pretrained(tmp_path / "run")
    loading.save_config(model, tmp_path / "run")
    weights = load_file(tmp_path / "run/adapter_model.safetensors")
    next(tensor for name, tensor in weights.items() if "lora_B" in name).fill_(float("inf"))
    save_file(weights, tmp_path / "run/adapter_model.safetensors", {"format": "pt"})
    (tmp_path / "out").mkdir()
    with pytest.raises(RuntimeError, match="is another one"):
        merge(str(tmp_path / "run"), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == ["out"]
    assert list((tmp_path / "out").iterdir()) == []


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


# ---- new tokens -----------------------------------------------------------------------------------------------------

NARROW = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
NARROW |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": VOCABULARY}
NARROW |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
STACKS = {
    "bart": NARROW,
    "marian": {**NARROW, "decoder_vocab_size": VOCABULARY},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": VOCABULARY},
}
STACKS["t5"] |= {"decoder_start_token_id": 0}
SUBTOKENS = {VOCABULARY: [5, 9], VOCABULARY + 1: [7], VOCABULARY + 2: [3, 3, 30]}


def language_model(kind, folder, **config):
    """A language model of one kind, saved with biases and rows that are all different, and its class."""
    if kind in STACKS:
        model_class, sizes = AutoModelForSeq2SeqLM, STACKS[kind]
    else:
        model_class = AutoModelForCausalLM if kind in DECODERS else AutoModelForMaskedLM
        sizes = {**SIZES, **OWN.get(kind, {})}
    set_seed(1)
    model = model_class.from_config(AutoConfig.for_model(kind, **{**sizes, **config}))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * 0.2)
    with loading.quiet():
        model.save_pretrained(folder)
        return model_class.from_pretrained(folder), model_class


def extended(folder, model_class, subtokens, **options):
    table = Model(name=str(folder), **options)
    config, _ = load_config(table)
    return create_model(table, config, model_class, 0, subtokens=subtokens)


@pytest.mark.parametrize("kind", ["bert", "albert", "modernbert", "gpt2", "llama", *STACKS])
def test_a_new_token_begins_as_the_mean_of_its_pieces(kind, tmp_path):
    old, model_class = language_model(kind, tmp_path / "old")
    new, notes = extended(tmp_path / "old", model_class, SUBTOKENS)
    assert notes == ["3 tokens are new: their embeddings begin at the mean of their pieces'"]
    assert new.config.vocab_size == VOCABULARY + 3
    tied = old.get_output_embeddings().weight is old.get_input_embeddings().weight
    assert (new.get_output_embeddings().weight is new.get_input_embeddings().weight) == tied
    before, resized = old.state_dict(), set()
    for name, tensor in new.state_dict().items():
        if tensor.shape == before[name].shape:
            assert torch.equal(tensor, before[name]), name
            continue
        rows, former = (tensor[0], before[name][0]) if name == "final_logits_bias" else (tensor, before[name])
        assert torch.equal(rows[:VOCABULARY], former)
        for token, ids in SUBTOKENS.items():
            assert_close(rows[token], former[ids].mean(0))
        resized.add(name)
    beside = {"bart": {"final_logits_bias"}, "marian": {"final_logits_bias"}, "llama": {"lm_head.weight"}}
    assert resized >= beside.get(kind, set())
    assert tied == (kind != "llama")
    decoder = {"decoder_input_ids": IDS[:1]} if kind in STACKS else {}
    with torch.no_grad():
        here = new.eval()(input_ids=IDS[:1], **decoder).logits
        there = old.eval()(input_ids=IDS[:1], **decoder).logits
    assert_close(here[..., :VOCABULARY], there)
    assert_close(here[..., VOCABULARY], there[..., [5, 9]].mean(-1))


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_a_model_with_new_tokens_trains_and_loads_in_plain_transformers(kind, tmp_path):
    _, model_class = language_model(kind, tmp_path / "old")
    new, _ = extended(tmp_path / "old", model_class, SUBTOKENS)
    ids = torch.tensor([[5, VOCABULARY, VOCABULARY + 2, 7]])
    new(input_ids=ids, labels=ids).loss.backward()
    assert new.get_input_embeddings().weight.grad[[*SUBTOKENS]].abs().sum() > 0
    with loading.quiet():
        new.save_pretrained(tmp_path / "new")
    loaded = model_class.from_pretrained(tmp_path / "new")
    assert loaded.config.vocab_size == VOCABULARY + 3
    with torch.no_grad():
        assert_close(loaded.eval()(input_ids=ids, labels=ids).logits, new.eval()(input_ids=ids, labels=ids).logits)


def test_embeddings_with_room_keep_their_size(tmp_path):
    old, model_class = language_model("gpt2", tmp_path / "old")
    new, notes = extended(tmp_path / "old", model_class, {VOCABULARY - 2: [5, 9]})
    assert notes[-1].startswith("1 token is new: its embedding begins")
    rows = new.get_input_embeddings().weight
    assert new.config.vocab_size == VOCABULARY
    assert_close(rows[VOCABULARY - 2], old.get_input_embeddings().weight[[5, 9]].mean(0))
    assert torch.equal(rows[: VOCABULARY - 2], old.get_input_embeddings().weight[: VOCABULARY - 2])
    assert torch.equal(rows[VOCABULARY - 1], old.get_input_embeddings().weight[VOCABULARY - 1])


def test_a_classifier_gets_the_new_tokens_too(base):
    table = Model(name=base("bert"))
    config, _ = load_config(table, finetuning=True)
    model, notes = create_model(table, config, AutoModelForSequenceClassification, 0, subtokens=SUBTOKENS)
    assert model.get_input_embeddings().num_embeddings == VOCABULARY + 3
    assert notes[-1].startswith("3 tokens are new")


@pytest.mark.parametrize("part", ["head", "top-1", "lora"])
def test_new_tokens_whose_embeddings_would_not_be_trained_are_refused(part, base):
    table = Model(name=base("bert")) if part == "lora" else Model(name=base("bert"), train=part)
    config, _ = load_config(table)
    lora = {} if part == "lora" else None
    message = refused(create_model, table, config, AutoModelForMaskedLM, 0, lora=lora, subtokens=SUBTOKENS)
    assert "new tokens need embeddings that are trained" in message
    assert "tokenizer.add_tokens" in message


def test_a_model_from_scratch_has_room_for_new_tokens(base):
    tokenizer = AutoTokenizer.from_pretrained(base("bert"))
    tokenizer.add_tokens(["tokamak", "stellarator"])
    scratch, pretrained = Model(name=base("bert"), init="scratch"), Model(name=base("bert"))
    for table, num_new, size in ((scratch, 2, VOCABULARY + 2), (pretrained, 2, VOCABULARY)):
        config, _ = load_config(table)
        fit_to_tokenizer(config, table, tokenizer, own_tokenizer=False, num_new=num_new)
        assert config.vocab_size == size
    config, _ = load_config(Model(name=base("bert"), config=ReadOnly({"vocab_size": 50})))
    fit_to_tokenizer(config, scratch, tokenizer, own_tokenizer=False, num_new=2)
    assert config.vocab_size == 50  # padded
    for table in (scratch, pretrained):
        config, _ = load_config(table)
        message = refused(fit_to_tokenizer, config, table, tokenizer, own_tokenizer=False)
        assert "the tokenizer has 42 tokens and the model embeddings for 40" in message


@pytest.mark.parametrize("layers", [1, 4, 25])
def test_another_number_of_layers_goes_on_with_the_pattern_of_the_architecture(layers):
    table = Model(config=ReadOnly({"model_type": "modernbert", "num_hidden_layers": layers}), init="scratch")
    config, _ = load_config(table)
    assert config.layer_types == AutoConfig.for_model("modernbert", num_hidden_layers=layers).layer_types
