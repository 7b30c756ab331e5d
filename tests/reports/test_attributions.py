"""The words that decided: they sum to what they explain, equal captum's, and stand as in the text."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from captum.attr import LayerIntegratedGradients
from conftest import byte_tokenizer
from predictions import BERT, TRAINER, write_data
from tiny_models import OWN, SIZES
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, PreTrainedTokenizerFast, set_seed

from llmkit import tasks
from llmkit.data.rows.batches import models_own
from llmkit.models import loading
from llmkit.reports import attributions
from llmkit.reports.attributions import explain, integrated_gradients, places, to_words

ENGLISH = "The unbelievably good film isn't bad, but the ending disappoints everybody who waited."
CHINESE = "这部电影非常好看，我们都喜欢。"
ROWS = [{"text": ENGLISH}, {"text": "Good film!"}]
OTHER = "Nobody waited for the film."
CLASSES = {"id2label": {0: "bad", 1: "fair", 2: "good"}, "label2id": {"bad": 0, "fair": 1, "good": 2}}
TAGS = {"id2label": {0: "O", 1: "B-PER", 2: "B-LOC"}, "label2id": {"O": 0, "B-PER": 1, "B-LOC": 2}}


def wordpiece():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted({*f"{ENGLISH}{OTHER}{CHINESE}".lower()} - {" "})
    words = ["the", "un", "##believ", "##ably", "good", "film", "bad", "but", "end", "##ing", "who", "wait", "##ed"]
    vocabulary = [*special, *letters, *(f"##{letter}" for letter in letters), *words]
    numbers = {token: number for number, token in enumerate(vocabulary)}
    backend = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    kinds = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        mask_token="[MASK]",
        model_input_names=kinds,
        clean_up_tokenization_spaces=False,
        **names,
    )


def model_of(kind, task, **config):
    """A model of one kind with outputs that depend on its words."""
    set_seed(1)
    sizes = {**SIZES, **OWN.get(kind, {}), "vocab_size": 400, "max_position_embeddings": 64, "num_hidden_layers": 2}
    model = tasks.model_class(task).from_config(AutoConfig.for_model(kind, **{**sizes, **config}))
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.4)
    return model.eval()


def run_of(folder, kind, task, columns, tokenizer=None, length=None, **config):
    """A folder as a finished run leaves it."""
    with loading.quiet():
        model_of(kind, task, **config).save_pretrained(folder)
    (tokenizer or wordpiece()).save_pretrained(folder)
    record = {"task": task, "status": "finished", "columns": columns, "max_length": length}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def sums(found):
    """Every attribution has the words that it should, and sums to its difference within 2 %."""
    for each in found:
        assert sum(word.score for word in each.words) == pytest.approx(each.difference, rel=0.02)
        assert each.difference != 0
        assert each.gap <= 0.02
        assert [word.text for word in each.words] == [each.texts[w.part][w.begin : w.end] for w in each.words]
    return found


# ---- the sum -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        "bert",
        "roberta",
        "xlm-roberta",
        "distilbert",
        "electra",
        "albert",
        "deberta",
        "deberta-v2",
        "modernbert",
    ],
)
def test_the_words_of_every_kind_of_encoder_sum_to_the_difference(kind, tmp_path):
    run = run_of(tmp_path, kind, "text-classification", {"text": "text", "label": "label"}, **CLASSES)
    found = sums(explain(run, ROWS))
    assert [each.row for each in found] == [0, 1]
    assert [word.text for word in found[1].words] == ["Good", "film", "!"]
    model = loading.load_model(str(run), transformers.AutoModelForSequenceClassification)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run)
    for each in found:
        read = tokenizer(each.texts[0], return_tensors="pt", return_special_tokens_mask=True)
        special = read.pop("special_tokens_mask").bool()
        own = {name: read[name] for name in read if kind != "distilbert" or name != "token_type_ids"}
        with torch.no_grad():
            masked = {**own, "input_ids": torch.where(special, own["input_ids"], tokenizer.mask_token_id)}
            logits = [model(**inputs).logits[0] for inputs in (masked, own)]
        best = int(logits[1].argmax())
        assert each.explained == CLASSES["id2label"][best]
        others = [number for number in range(3) if number != best]
        odds = [float(each[best] - each[others].logsumexp(0)) for each in logits]
        assert each.difference == pytest.approx(odds[1] - odds[0], abs=1e-4)


def test_a_decoder_without_a_mask_begins_at_its_padding(tmp_path):
    """The ids stay, by which it finds its last token."""
    columns, tokenizer = {"text": "text"}, byte_tokenizer()
    run = run_of(tmp_path, "gpt2", "text-classification", columns, tokenizer, **CLASSES)
    (found,) = sums(explain(run, ROWS[1:]))
    assert [word.text for word in found.words] == ["Good", "film", "!"]
    model = loading.load_model(str(run), transformers.AutoModelForSequenceClassification)
    ids = torch.tensor([tokenizer("Good film!")["input_ids"]])
    odds = []
    for own in (torch.full_like(ids, tokenizer.eos_token_id), ids):
        with torch.no_grad():
            logits = model.score(model.transformer(own).last_hidden_state)[0, -1]
        best = CLASSES["label2id"][found.explained]
        odds.append(float(logits[best] - logits[[number for number in range(3) if number != best]].logsumexp(0)))
    assert found.difference == pytest.approx(odds[1] - odds[0], abs=1e-4)


def test_several_classes_a_value_and_a_pair_are_explained(tmp_path):
    columns = {"text": "text", "text_pair": "other", "label": "label"}
    row = {"text": ENGLISH, "other": OTHER}
    several = {**CLASSES, "problem_type": "multi_label_classification"}
    (of_class,) = sums(explain(run_of(tmp_path / "multi", "bert", "text-classification", columns, **several), [row]))
    assert of_class.explained in CLASSES["label2id"]
    assert of_class.texts == (ENGLISH, OTHER)
    assert [word.text for word in of_class.words if word.part == 1] == ["Nobody", "waited", "for", "the", "film", "."]
    one = {"num_labels": 1, "problem_type": "regression"}
    (value,) = sums(explain(run_of(tmp_path / "value", "bert", "text-classification", columns, **one), [row]))
    assert np.isfinite(float(value.explained))


def test_what_is_cut_off_has_no_word(tmp_path):
    columns = {"text": "text", "text_pair": "other"}
    run = run_of(tmp_path, "bert", "text-classification", columns, length=12, **CLASSES)
    (found,) = sums(explain(run, [{"text": ENGLISH, "other": "bad"}]))
    first = [word for word in found.words if word.part == 0]
    assert first[0].text == "The"
    assert first[-1].end < len(ENGLISH) / 2
    assert [word.text for word in found.words if word.part == 1] == ["bad"]


def test_the_chosen_choice_is_explained_with_what_stands_before_it(tmp_path):
    columns = {"context": "ctx", "choice0": "a", "choice1": "b", "choice2": "c", "answer": "label"}
    run = run_of(tmp_path, "bert", "multiple-choice", columns, length=24)
    rows = [
        {"ctx": ENGLISH, "a": "good film", "b": OTHER, "c": ""},
        {"ctx": OTHER, "a": "bad", "b": "film", "c": "the"},
    ]
    found = sums(explain(run, rows))
    for row, each in zip(rows, found, strict=True):
        assert each.explained == each.texts[1]
        assert each.explained in (row["a"], row["b"], row["c"])
        assert " ".join(word.text for word in each.words if word.part == 1).replace(" .", ".") == each.explained
    assert found[0].words[0].text != "The"  # the context is cut from its beginning
    assert [word for word in found[0].words if word.part == 0][-1].end == len(ENGLISH)


@pytest.mark.parametrize("length", [None, 10])
def test_the_surest_mistake_among_the_tags_is_explained(tmp_path, length):
    run = run_of(tmp_path, "bert", "token-classification", {"tokens": "tokens", "tags": "tags"}, length=length, **TAGS)
    words = ENGLISH.split()
    (surest,) = sums(explain(run, [{"tokens": words}]))
    assert surest.texts == (ENGLISH,)
    assert surest.explained != "O"
    assert [word.text for word in surest.words if word.text not in words] == []
    first = surest.words[surest.word].text
    right = [surest.explained] * len(words)
    right[3] = "B-PER" if surest.explained == "B-LOC" else "B-LOC"
    (mistake,) = sums(explain(run, [{"tokens": words, "tags": right}]))
    said = dict(zip(words, right, strict=True))
    assert mistake.explained != said[mistake.words[mistake.word].text]
    assert mistake.words[mistake.word].text != first
    numbered = [{"tokens": words, "tags": [list(TAGS["label2id"]).index(tag) for tag in right]}]
    (same,) = explain(run, numbered, class_names={"tags": ("O", "B-PER", "B-LOC")})
    assert (same.explained, same.word, same.difference) == (
        mistake.explained,
        mistake.word,
        pytest.approx(mistake.difference, rel=1e-5),
    )


@pytest.mark.parametrize("length", [None, 20])
def test_both_logits_of_an_answer_are_explained_in_the_window_that_it_is_from(tmp_path, length):
    columns = {"question": "question", "context": "context", "answers": "answers"}
    run = run_of(tmp_path, "bert", "question-answering", columns, length=length)
    rows = [{"question": "who waited?", "context": f"{ENGLISH} {OTHER}"}, {"question": "who?", "context": ENGLISH}]
    found = sums(explain(run, rows))
    for row, each in zip(rows, found, strict=True):
        assert each.texts == (row["question"], row["context"])
        assert each.explained in row["context"]
        assert [word.text for word in each.words if word.part == 0] in (["who", "waited", "?"], ["who", "?"])
        inside = [word.text for word in each.words if word.part == 1]
        read = [word for word in each.words if word.part == 1]
        assert each.explained in row["context"][read[0].begin : read[-1].end]
        words = list(filter(str.strip, attributions.SEGMENT.findall(row["context"])))
        assert inside in [words[i : i + len(inside)] for i in range(len(words))]
        assert (len(inside) < len(words)) == (length is not None)


def test_an_adapter_on_its_base_is_explained(llmkit, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data()
    Path("recipe.toml").write_text(f'task = "text-classification"\n[data]\npath = "single.csv"\n{TRAINER}')
    words = (f"model.name={base}", "lora.r=4", "trainer.max_steps=4")
    done = llmkit("finetune", "recipe.toml", *words, "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    assert Path("run/adapter_model.safetensors").exists()
    (found,) = sums(explain(Path("run"), [{"remark": "the hen saw 3 of the foxs", "label": "bird"}]))
    assert [word.text for word in found.words] == ["the", "hen", "saw", "3", "of", "the", "foxs"]


def test_the_word_that_a_model_was_taught_decides(llmkit, tmp_path, monkeypatch):
    """What is a bird and what a beast hangs on the second word alone."""
    monkeypatch.chdir(tmp_path)
    write_data()
    Path("recipe.toml").write_text(f'task = "text-classification"\n{BERT}[data]\npath = "single.csv"\n{TRAINER}')
    done = llmkit("finetune", "recipe.toml", "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    texts = ["the hen saw 3 of the foxs far far", "the dog fed 1 of the hens far", "the cat met 2 of the dogs"]
    found = sums(explain(Path("run"), [{"remark": text} for text in texts]))
    assert [each.explained for each in found] == ["bird", "beast", "beast"]
    for each in found:
        assert max(each.words, key=lambda word: word.score).begin == 4


# ---- beside captum -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta-v2", "electra"])
def test_token_by_token_they_equal_captums(kind):
    model, tokenizer = model_of(kind, "text-classification", **CLASSES), wordpiece()
    inputs = dict(tokenizer(ENGLISH, OTHER, return_tensors="pt"))
    if kind == "roberta":
        inputs["token_type_ids"] = torch.zeros_like(inputs["token_type_ids"])
    of_text = inputs["input_ids"][0] > 4
    mask = tokenizer.mask_token_id

    def score(outputs):
        return outputs.logits[:, 0] - outputs.logits[:, 1]

    mine, difference = integrated_gradients(model, inputs, of_text, mask, score, tolerance=1e-4)
    names = [name for name in inputs if name != "input_ids"]

    def forward(ids, *others):
        return score(model(input_ids=ids, **dict(zip(names, others, strict=True))))

    theirs, delta = LayerIntegratedGradients(forward, model.get_input_embeddings()).attribute(
        inputs["input_ids"],
        baselines=inputs["input_ids"].masked_fill(of_text, mask),
        additional_forward_args=tuple(inputs[name] for name in names),
        n_steps=100,
        return_convergence_delta=True,
    )
    assert abs(float(delta)) < 1e-3
    assert mine.abs().max() > 0.05
    torch.testing.assert_close(mine, theirs.sum(dim=-1)[0], rtol=0, atol=1e-3)
    assert float(mine.sum()) == pytest.approx(difference, abs=1e-3)
    assert mine[~of_text].abs().max() == 0


def test_the_weights_of_the_points_integrate_polynomials():
    for intervals in (2, 8, 16):
        points, weights = attributions.line(intervals)
        assert (points[0], points[-1]) == (0, 1)
        for power in range(intervals + 1):
            assert weights @ points**power == pytest.approx(1 / (power + 1), abs=1e-12)


# ---- words ---------------------------------------------------------------------------------------------------------


def joined(tokenizer, *texts):
    """The words of texts, and how many tokens each has."""
    ids = tokenizer(*texts)["input_ids"]
    where = places(tokenizer, texts, ids)
    found = to_words(texts, where, [1.0] * len(ids))
    assert sum(word.score for word in found) == sum(place is not None for place in where)
    return [(word.text, word.score) for word in found]


def test_pieces_are_joined_to_the_words_of_the_text():
    assert joined(wordpiece(), "Isn't Unbelievably, good-film") == [
        ("Isn't", 5),
        ("Unbelievably", 3),
        (",", 1),
        ("good", 1),
        ("-", 1),
        ("film", 1),
    ]
    pieces = joined(wordpiece(), "waitedgood film")
    assert [word for word, _ in pieces] == ["waitedgood", "film"]
    assert pieces[0][1] > 1
    bytes_of = joined(byte_tokenizer(), "Once upon\n a café's 👍🏽 zebra")
    assert [word for word, _ in bytes_of] == ["Once", "upon", "a", "café's", "👍🏽", "zebra"]
    assert dict(bytes_of)["👍🏽"] == 8 + 1  # bytes, and the blank before it


def test_chinese_is_cut_as_the_tokenizer_cuts_it():
    assert [word for word, _ in joined(wordpiece(), "电影好看，film 我们")] == [*"电影好看，", "film", "我", "们"]
    bytes_of = joined(byte_tokenizer(), "我们 to")
    assert bytes_of == [("我", 3), ("们", 3), ("to", bytes_of[-1][1])]
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -9.0), ("▁我们", -2.0), ("喜欢", -2.0), ("你", -3.0)], 0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert joined(pieces, "我们喜欢你") == [("我们", 1), ("喜欢", 1), ("你", 1)]
    assert joined(pieces, "你 你") == [("你", 2), ("你", 2)]  # a blank belongs to the word behind it


def test_tokens_are_found_where_the_input_holds_a_part_of_the_texts():
    tokenizer = wordpiece()
    whole = tokenizer(ENGLISH, OTHER, return_offsets_mapping=True)
    ids, offsets, of = whole["input_ids"], whole["offset_mapping"], whole.sequence_ids(0)
    middle, end = of.index(None, 1), len(ids) - 1
    for kept in (
        [*range(5), *range(middle, end + 1)],  # as a classifier's, the longer text first
        [0, *range(9, end + 1)],  # as a choice's
        [*range(middle + 1), *range(middle + 3, middle + 5), end],  # as a window's
    ):
        found = places(tokenizer, (ENGLISH, OTHER), [ids[i] for i in kept])
        assert found == [None if of[i] is None else (of[i], *offsets[i]) for i in kept]
    assert places(tokenizer, (ENGLISH, OTHER), [*ids[:3], ids[4], ids[3], *ids[5:]]) is None


# ---- what it leaves alone, and what it cannot ----------------------------------------------------------------------


def test_no_random_state_and_no_flag_is_touched(tmp_path):
    columns = {"text": "text"}
    run = run_of(tmp_path, "bert", "text-classification", columns, hidden_dropout_prob=0.5, **CLASSES)
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    with torch.no_grad():
        first = explain(run, ROWS)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == state[1:]
    again = explain(run, ROWS)
    assert [each.difference for each in again] == pytest.approx([each.difference for each in first], rel=1e-5)
    model = loading.load_model(str(run), transformers.AutoModelForSequenceClassification)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    ids = torch.tensor([[2, 9, 8, 3]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    integrated_gradients(model, inputs, ids[0] > 4, 4, lambda outputs: outputs.logits[:, 0])
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks
    assert models_own(inputs) == inputs


@pytest.mark.parametrize("task", ["causal-lm", "seq2seq", "masked-lm"])
def test_a_task_without_a_decision_has_none(task, tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps({"task": task}))
    assert explain(tmp_path, ROWS) == []
    assert f"note: what a model for {task} says" in capsys.readouterr().err


def test_a_model_that_reads_its_words_twice_has_none(tmp_path, capsys):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "eos_token_id": 3, **CLASSES}
    run = run_of(tmp_path, "t5", "text-classification", {"text": "text"}, **sizes, decoder_start_token_id=0)
    assert explain(run, ROWS) == []
    assert "T5ForSequenceClassification does not read its input embeddings once" in capsys.readouterr().err


def test_a_sum_that_is_not_reached_is_said(tmp_path, capsys, monkeypatch):
    run = run_of(tmp_path, "bert", "text-classification", {"text": "text"}, **CLASSES)
    monkeypatch.setattr(attributions, "INTERVALS", (2,))
    (found,) = explain(run, ROWS[:1], tolerance=1e-6)
    assert found.gap > 1e-6
    assert "note: the words of 1 row add up to what they explain but for" in capsys.readouterr().err
