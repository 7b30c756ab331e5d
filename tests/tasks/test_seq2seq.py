"""Writing a text from another: pairs as they come, labels as the models shift them, texts as `generate` writes them."""

import itertools
import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sacrebleu
import torch
import torch.nn.functional as F
from conftest import losses
from rouge_score.rouge_scorer import RougeScorer
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    MarianConfig,
    MBart50Tokenizer,
    MBartConfig,
    MBartTokenizer,
    NllbTokenizer,
    T5Config,
)

from llmkit import metrics as measures
from llmkit.data.rows.batches import models_own
from llmkit.data.rows.table import Rows
from llmkit.data.text.documents import Documents
from llmkit.errors import UserError
from llmkit.models import tokenizer as tokenizers
from llmkit.models.config import fit_to_tokenizer
from llmkit.models.weights import create_model
from llmkit.recipe import bundled, load
from llmkit.recipe.data_tables import PairData
from llmkit.recipe.schema import Model, Tokenizer
from llmkit.recipe.table import ReadOnly
from llmkit.speed.fused_loss import FusedLMLoss
from llmkit.tasks import seq2seq
from llmkit.tasks.inputs import fit_for_batches

COLOURS = {"red": "rot", "blue": "blau", "green": "grun", "white": "weiss", "": ""}
ANIMALS = {"cat": "katze", "dog": "hund", "fish": "fisch", "bird": "vogel", "horse": "pferd", "mouse": "maus"}
DEEDS = {"runs": "rennt", "sleeps": "ruht", "eats": "frisst", "drinks": "trinkt", "": ""}
WORDS = {**COLOURS, **ANIMALS, **DEEDS}
T5 = {
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 4,
    "d_kv": 16,
    "d_ff": 128,
    "d_model": 64,
    "dropout_rate": 0.0,
}
LAYERS = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
WIDTHS = {"encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "d_model": 64, "max_position_embeddings": 32}
BART = {**LAYERS, **WIDTHS, "dropout": 0.0, "init_std": 0.1}
TINY = {
    "t5": T5Config(**T5),
    **{
        kind: config(**BART, pad_token_id=1, bos_token_id=0, eos_token_id=2)
        for kind, config in (("bart", BartConfig), ("mbart", MBartConfig))
    },
}
FAMILIES = {
    "t5": (T5, ("trainer.learning_rate=1e-2", "trainer.max_steps=200")),
    "bart": (BART, ()),
    "marian": ({**BART, "scale_embedding": True}, ()),
}
RECIPE = """
task = "seq2seq"
[model.config]
model_type = "{kind}"
{config}
[tokenizer]
type = "wordpiece"
vocab_size = 200
[data]
path = "rows.jsonl"
validation_fraction = 0.1
max_length = 16
max_target_length = 12
[trainer]
max_steps = 120
per_device_train_batch_size = 32
learning_rate = 5e-3
warmup_steps = 10
logging_steps = 50
train_sampling_strategy = "group_by_length"
"""


def translated(text):
    return " ".join(WORDS[word] for word in text.split())


def pairs(number=150):
    """Texts, no two alike, and their translations, word by word."""
    every = [" ".join(filter(None, words)) for words in itertools.product(COLOURS, ANIMALS, DEEDS)]
    return [(text, translated(text)) for text in random.Random(0).sample(every, number)]


def table(rows, columns=None):
    read = lambda: ((f"`pairs`, row {number}", each) for number, each in enumerate(rows, 1))  # noqa: E731
    return Rows(read, tuple(columns or rows[0]), {}, "", "`pairs`")


def data(**keys):
    return PairData(path="-", **keys)


@pytest.fixture
def words(tmp_path, monkeypatch):
    """A tokenizer trained on the pairs as a run does it."""
    monkeypatch.setattr(tokenizers, "cache_dir", lambda: tmp_path / "cache")
    texts = [text for pair in pairs() for text in pair]
    documents = Documents(lambda: iter(texts), "pairs", "`pairs`")
    return tokenizers.load(
        Tokenizer(type="wordpiece", vocab_size=200), Model(config=ReadOnly()), "seq2seq", documents, None
    )


def model_of(kind, words):
    """A tiny model with the special tokens of the tokenizer, and weights large enough to say something."""
    config = type(TINY[kind])(**TINY[kind].to_dict())
    fit_to_tokenizer(config, Model(init="scratch", config=ReadOnly()), words, own_tokenizer=True)
    fit_for_batches(words, config)
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def examples_of(words, rows=None, evaluation=True, **keys):
    rows = rows or [{"source": a, "target": b} for a, b in pairs(12)]
    settings = data(**keys)
    found = table(rows)
    columns = seq2seq.reader.resolve_columns(settings, found)
    part = seq2seq.encode(found, columns, words, settings, 16)
    known = seq2seq.resolve_labels(settings, columns, part, {}, SimpleNamespace(), False)
    return seq2seq.examples(part, known, evaluation), known


# ---- columns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "keys", "expected"),
    [
        (("document", "summary", "id"), {}, ("document", "summary")),
        (("article", "highlights", "id"), {}, ("article", "highlights")),
        (("id", "dialogue", "summary"), {}, ("dialogue", "summary")),
        (("source", "target", "title"), {}, ("source", "target")),
        (("en", "de"), {"source_lang": "en", "target_lang": "de"}, ("en", "de")),
        (("en", "de"), {"source_lang": "de", "target_lang": "en"}, ("de", "en")),
        (("en", "de"), {"source_column": "en"}, ("en", "de")),
        (("id", "translation"), {"source_lang": "en", "target_lang": "de"}, ("translation.en", "translation.de")),
        (("document", "text", "summary"), {"source_column": "text"}, ("text", "summary")),
        (("question", "sparql"), {"source_column": "question", "target_column": "sparql"}, ("question", "sparql")),
        (("source", "target"), {"source_lang": "eng_Latn", "target_lang": "deu_Latn"}, ("source", "target")),
    ],
)
def test_columns_are_found(columns, keys, expected):
    found = seq2seq.reader.resolve_columns(data(**keys), table([], columns))
    assert (found["source"], found["target"]) == expected
    assert seq2seq.reader.resolve_columns(data(**keys), table([], columns), labelled=False) == {"source": expected[0]}


@pytest.mark.parametrize(
    ("rows", "keys", "said"),
    [
        ([{"english": "a", "german": "b"}], {}, "which column is the source?"),
        ([{"document": "a", "text": "b", "summary": "c"}], {}, "which column is the source?"),
        ([{"text": "a", "extra": "b", "label": "c"}], {"source_column": "text"}, "which column is the target?"),
        ([{"text": "a", "summary": "b"}], {"source_column": "txt"}, "has no column `txt`"),
        ([{"text": "a", "b": "b"}], {"source_column": "text", "target_column": "text"}, "both source and target"),
        ([{"translation": {"en": "a", "de": "b"}}], {"source_lang": "en"}, "which language is translated into which?"),
    ],
)
def test_columns_that_are_not_clear_are_asked_for(rows, keys, said):
    with pytest.raises(UserError, match=said.replace("?", r"\?")) as raised:
        seq2seq.reader.resolve_columns(data(**keys), table(rows))
    assert "set data." in raised.value.hint or "name two" in raised.value.hint
    if "translation" in rows[0]:
        assert "en, de" in raised.value.hint


# ---- tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["byte-bpe", "wordpiece", "unigram", "characters"])
def test_a_trained_tokenizer_ends_every_text_and_brings_it_back(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizers, "cache_dir", lambda: tmp_path)
    texts = [text for pair in pairs() for text in pair]
    documents = Documents(lambda: iter(texts), "pairs", "`pairs`")
    table = Tokenizer(type=kind, vocab_size=400)
    words = tokenizers.load(table, Model(config=ReadOnly()), "seq2seq", documents, None)
    assert (words.pad_token_id, words.eos_token_id, words.unk_token_id) == (0, 1, 2)
    for text in texts[:50]:
        ids = words(text_target=text)["input_ids"]
        assert ids[-1] == 1
        assert not {0, 1, 2} & set(ids[:-1])
        assert words.decode(ids, skip_special_tokens=True).strip() == text


def test_rows_become_tokens_cut_where_there_is_no_room_and_ended(words):
    rows = [{"source": "red cat", "target": "rot katze"}, {"source": "red " * 30, "target": "rot " * 30}]
    settings = data(source_prefix="blue ", max_target_length=6)
    columns = {"source": "source", "target": "target"}
    part = seq2seq.encode(table(rows), columns, words, settings, 8)
    one = {text: words(text)["input_ids"][0] for text in (*filter(None, WORDS), *filter(None, WORDS.values()))}
    assert part.inputs["input_ids"][0].tolist() == [one["blue"], one["red"], one["cat"], 1]
    assert part.inputs["labels"][0].tolist() == [one["rot"], one["katze"], 1]
    assert part.inputs["input_ids"][1].tolist() == [one["blue"], *[one["red"]] * 6, 1]
    assert part.inputs["labels"][1].tolist() == [*[one["rot"]] * 5, 1]
    assert (part.lengths, part.cut, part.row, part.empty) == ([4, 32], [0, 24], [0, 1], [])
    known = seq2seq.resolve_labels(settings, columns, part, {}, SimpleNamespace(), False)
    assert seq2seq.label_counts(part, known) == {
        "of": "target tokens",
        "min": 3.0,
        "mean": 17.0,
        "max": 31.0,
        "cut": 1,
    }
    assert part.targets[1][0] == ["rot " * 30]  # what is measured against is never cut
    assert sorted(seq2seq.reader.texts(rows[0], columns)) == ["red cat", "rot katze"]


def test_lists_and_tables_of_languages_are_read(words):
    listed = [{"source": ["red cat.", "blue dog."], "target": ["rot katze", "katze rot", ""]}]
    columns = {"source": "source", "target": "target"}
    part = seq2seq.encode(table(listed), columns, words, data(), 16)
    assert words.decode(part.inputs["input_ids"][0]) == words.decode(words("red cat. blue dog.")["input_ids"])
    assert words.decode(part.inputs["labels"][0], skip_special_tokens=True) == "rot katze"
    assert part.targets[0][0] == ["rot katze", "katze rot"]
    assert sorted(seq2seq.reader.texts(listed[0], columns)) == sorted([*listed[0]["source"], *listed[0]["target"]])
    nested = [{"translation": {"de": "rot", "en": "red", "fr": "rouge"}}]
    settings = data(source_lang="en", target_lang="de")
    columns = seq2seq.reader.resolve_columns(settings, table(nested))
    part = seq2seq.encode(table(nested), columns, words, settings, 16)
    assert words.decode(part.inputs["input_ids"][0], skip_special_tokens=True) == "red"
    assert words.decode(part.inputs["labels"][0], skip_special_tokens=True) == "rot"
    assert list(seq2seq.reader.texts(nested[0], columns)) == ["red", "rot"]


def test_rows_without_a_source_are_counted(words):
    rows = [{"source": "red", "target": "rot"}, {"source": "", "target": "rot"}]
    part = seq2seq.encode(table(rows), {"source": "source", "target": "target"}, words, data(), 16)
    assert part.empty == [1]
    alone = seq2seq.encode(table(rows), {"source": "source"}, words, data(), 16)
    assert len(alone.row) == 2
    assert "labels" not in alone.inputs


def test_of_several_target_columns_the_first_is_learned_and_all_are_references(words):
    rows = [{"text": "red cat", "one": "rot katze", "two": "katze rot"}, {"text": "red", "one": None, "two": "rot"}]
    settings = data(source_column="text", target_column=("one", "two"))
    part = seq2seq.encode(table(rows), seq2seq.reader.resolve_columns(settings, table(rows)), words, settings, 16)
    learned = [words.decode(part.inputs["labels"][row], skip_special_tokens=True) for row in (0, 1)]
    assert learned == ["rot katze", "rot"]
    assert [references for references, _ in part.targets] == [["rot katze", "katze rot"], ["rot"]]


def test_a_tokenizer_that_ends_no_text_is_refused(words):
    from tokenizers.processors import TemplateProcessing

    words._tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(UserError, match="no end-of-sequence token"):
        seq2seq.encode(table([{"a": "b", "c": "d"}]), {"source": "a", "target": "c"}, words, data(), 16)


PIECES = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁red", -1.0), ("▁rot", -1.0)]


@pytest.mark.parametrize(
    ("words", "said", "codes", "setting"),
    [
        (MBartTokenizer(vocab=PIECES), ("en", "de"), ("en_XX", "de_DE"), "decoder_start_token_id"),
        (MBart50Tokenizer(vocab=PIECES), ("en_XX", "de"), ("en_XX", "de_DE"), "forced_bos_token_id"),
        (NllbTokenizer(), ("eng_Latn", "deu_Latn"), ("eng_Latn", "deu_Latn"), "forced_bos_token_id"),
    ],
    ids=["mbart", "mbart50", "nllb"],
)
def test_a_tokenizer_of_many_languages_is_told_which_two(words, said, codes, setting):
    settings = data(source_column="a", target_column="b", source_lang=said[0], target_lang=said[1])
    part = seq2seq.encode(table([{"a": "red", "b": "rot"}]), {"source": "a", "target": "b"}, words, settings, 16)
    source, target = (words.convert_tokens_to_ids(code) for code in codes)
    assert source in part.inputs["input_ids"][0]
    assert target in part.inputs["labels"][0]
    assert seq2seq.set_languages(words, settings) == {setting: target}
    with pytest.raises(UserError, match="knows no language `xx`"):
        seq2seq.set_languages(words, data(source_lang=said[0], target_lang="xx"))


# ---- batches and losses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TINY)
def test_batches_and_losses_are_those_of_the_model(kind, words):
    model = model_of(kind, words)
    part, _ = examples_of(words, evaluation=False)
    batch = seq2seq.collator(words, model.config, 1)([part[i] for i in range(len(part))])
    assert batch["labels"].shape[1] == max(len(labels) for labels in (part[i]["labels"] for i in range(len(part))))
    shifted = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    labelled = batch["labels"] != -100
    assert torch.equal(batch["decoder_input_ids"][labelled], shifted[labelled])
    read = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        outputs = model(**read, decoder_input_ids=batch["decoder_input_ids"])
        upstream = model(**read, labels=batch["labels"]).loss
        head, inputs = FusedLMLoss(model), models_own(batch)
        found = head.losses(model, inputs, batch["labels"])
        smoothed = head.losses(model, inputs, batch["labels"], label_smoothing=0.1)
    assert found.shape == batch["labels"].shape
    assert bool((found[~labelled] == 0).all())
    assert float(found.sum() / labelled.sum()) == pytest.approx(float(upstream), rel=1e-5)
    wanted = F.cross_entropy(outputs.logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=0.1)
    assert float(smoothed.sum() / labelled.sum()) == pytest.approx(float(wanted), rel=1e-5)


def test_batches_are_rounded_up_on_both_sides(words):
    part, _ = examples_of(words)
    batch = seq2seq.collator(words, model_of("bart", words).config, 8)([part[0], part[1]])
    assert batch["input_ids"].shape == batch["labels"].shape == batch["decoder_input_ids"].shape == (2, 8)


# ---- writing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_untrained_model_writes_alone_what_it_writes_among_others(kind, beams, words):
    model = model_of(kind, words)
    part, known = examples_of(words, max_target_length=9)
    model.generation_config.num_beams = beams
    collate = seq2seq.collator(words, model.config, 1)
    together = collate([part[i] for i in range(len(part))])
    assert together["input_ids"].shape[1] > len(part[0]["input_ids"])
    kept = seq2seq.preprocess_logits_for_metrics(model, None, together, known)
    assert kept.shape == (len(part), 1 + 9)
    assert kept[:, 0].tolist() == part.order.tolist()
    alone = torch.cat(
        [seq2seq.preprocess_logits_for_metrics(model, None, collate([part[i]]), known) for i in range(len(part))]
    )
    assert seq2seq.written_texts(kept.numpy(), known) == seq2seq.written_texts(alone.numpy(), known)
    assert len(set(seq2seq.written_texts(kept.numpy(), known))) > 1
    read = {name: together[name] for name in ("input_ids", "attention_mask")}
    plain = model.generate(**read, num_beams=beams, max_new_tokens=9)
    assert seq2seq.written_texts(kept.numpy(), known) == [
        text.strip() for text in words.batch_decode(plain, skip_special_tokens=True)
    ]
    rows = dict(seq2seq.postprocess(kept.numpy(), part, known))
    assert [rows[row]["generated_text"] for row in part.row[part.order]] == seq2seq.written_texts(kept.numpy(), known)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [({}, (7, None)), ({"max_new_tokens": 5}, (5, None)), ({"max_length": 9, "num_beams": 2}, (None, 9))],
)
@pytest.mark.parametrize("init", ["scratch", "pretrained"])
def test_the_recipe_says_how_long_a_text_may_be_and_else_the_data(init, generation, expected, words, tmp_path):
    before = model_of("bart", words)
    before.generation_config.update(max_length=20, no_repeat_ngram_size=3)
    before.save_pretrained(tmp_path)
    table = Model(name=str(tmp_path), init=init)
    made, _ = create_model(
        table, before.config, AutoModelForSeq2SeqLM, 0, generation=generation, task_type="SEQ_2_SEQ_LM"
    )
    known = seq2seq.GenerationSettings(words, 7, {"forced_bos_token_id": 5})
    seq2seq.prepare_model(made, known)
    settings = made.generation_config
    assert (settings.max_new_tokens, settings.max_length) == expected
    assert settings.num_beams == generation.get("num_beams")
    assert settings.forced_bos_token_id == 5
    assert settings.no_repeat_ngram_size == (3 if init == "pretrained" else None)
    assert (settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id) == (1, 1, 0)
    assert seq2seq.room(settings, known) == {(7, None): 7, (5, None): 5, (None, 9): 8}[expected]


def test_texts_longer_than_the_model_has_positions_are_refused(words):
    model = model_of("bart", words)
    with pytest.raises(UserError, match="max_target_length = 40 is more than the 32 positions"):
        seq2seq.resolve_labels(data(max_target_length=40), {}, None, {"x": None}, model.config, False)
    model.generation_config.max_new_tokens = 40
    with pytest.raises(UserError, match="40 new tokens are more than the 32 positions"):
        seq2seq.prepare_model(model, seq2seq.GenerationSettings(words, 12, {}))


def test_a_t5_that_transformers_cannot_write_with_is_refused_before_it_is_trained():
    with pytest.raises(UserError, match="cannot generate with 3 decoder layers and 2 encoder layers"):
        seq2seq.resolve_labels(data(), {}, None, {}, T5Config(num_layers=2, num_decoder_layers=3), False)


@pytest.mark.parametrize(
    ("config", "start"), [(T5Config, 0), (BartConfig, 1), (MarianConfig, 0)], ids=["t5", "bart", "marian"]
)
def test_a_model_from_scratch_gets_the_special_tokens_of_its_tokenizer(config, start, words):
    made = config()
    fit_to_tokenizer(made, Model(init="scratch", config=ReadOnly()), words, own_tokenizer=True)
    found = made.vocab_size, made.pad_token_id, made.eos_token_id, made.bos_token_id, made.decoder_start_token_id
    assert found == (len(words), 0, 1, None, start)
    assert getattr(made, "forced_eos_token_id", 1) == 1
    assert getattr(made, "decoder_vocab_size", len(words)) == len(words)


# ---- measures ------------------------------------------------------------------------------------------------------

HYPOTHESES = ["The cat sat. It ran off.", "a dog", "", "Running dogs were seen here today"]
REFERENCES = [
    ["The cat was sitting. It ran away!", "A cat ran off. It sat."],
    ["a dog and a cat"],
    ["nothing"],
    ["The running dog was seen today", "dogs run", "we saw dogs run"],
]


def test_rouge_is_that_of_rouge_score_with_a_line_for_each_sentence():
    found = measures.rouge(HYPOTHESES, REFERENCES)
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(kinds, use_stemmer=True)
    split = lambda text: text.replace(". ", ".\n").replace("! ", "!\n")  # noqa: E731
    for kind in kinds:
        best = [
            max(scorer.score(split(reference), split(text))[kind].fmeasure for reference in references)
            for text, references in zip(HYPOTHESES, REFERENCES, strict=True)
        ]
        assert found[kind] == pytest.approx(100 * np.mean(best))
    assert found["rougeLsum"] != found["rougeL"]
    lines = [[text.replace(". ", ".\n") for text in texts] for texts in REFERENCES]
    assert measures.rouge(HYPOTHESES, lines) == found


def test_bleu_and_chrf_are_those_of_sacrebleu():
    one = [references[:1] for references in REFERENCES]
    flat = [[references[0] for references in REFERENCES]]
    assert measures.bleu(HYPOTHESES, one) == pytest.approx(sacrebleu.corpus_bleu(HYPOTHESES, flat).score)
    assert measures.chrf(HYPOTHESES, one) == pytest.approx(sacrebleu.corpus_chrf(HYPOTHESES, flat).score)
    padded = [[references[min(i, len(references) - 1)] for references in REFERENCES] for i in range(3)]
    assert measures.bleu(HYPOTHESES, REFERENCES) == pytest.approx(sacrebleu.corpus_bleu(HYPOTHESES, padded).score)
    assert measures.chrf(HYPOTHESES, REFERENCES) == pytest.approx(sacrebleu.corpus_chrf(HYPOTHESES, padded).score)
    assert measures.bleu(HYPOTHESES, REFERENCES) > measures.bleu(HYPOTHESES, one)
    assert measures.bleu(["a b c d e"], [["a b c d e"]]) == pytest.approx(100)


# ---- from end to end -----------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    rows = [json.dumps({"text": a, "summary": b}) for a, b in pairs()[:120]]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    for kind, (config, _) in FAMILIES.items():
        lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in config.items())
        (tmp_path / f"{kind}.toml").write_text(RECIPE.format(kind=kind, config=lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dry_run_counts_what_training_would_have(place, llmkit):
    """Marian's own padding token, 58,100, is beyond a vocabulary that is yet to be made."""
    done = llmkit("finetune", "marian.toml", "--dry-run")
    assert done.exit_code == 0, done.stderr
    trained = finetune(llmkit, "marian.toml", "trainer.max_steps=1")
    assert f"parameters      {trained['parameters']:,}\n" in done.stderr


def finetune(llmkit, *words, name="run"):
    done = llmkit("finetune", *words, "--output-dir", name)
    assert done.exit_code == 0, done.stderr
    return json.loads(Path(name, "run.json").read_text())


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_dictionary_is_learned_and_used(kind, place, llmkit):
    record = finetune(llmkit, f"{kind}.toml", *FAMILIES[kind][1])
    told = record["metrics"]
    assert told["eval_chrf"] > 90
    assert told["eval_rouge1"] > 90
    assert record["data"]["train"]["balance"]["cut"] == 0

    asked = ["red cat sleeps", "dog", "green fish", "white horse eats"]
    done = llmkit("predict", "run", *asked)
    assert done.exit_code == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [list(answer) for answer in answers] == [["generated_text"]] * len(asked)
    said = [answer["generated_text"] for answer in answers]
    assert sum(one == translated(text) for one, text in zip(said, asked, strict=True)) >= 3
    model, words = AutoModelForSeq2SeqLM.from_pretrained("run"), AutoTokenizer.from_pretrained("run")
    batch = words(asked, padding=True, return_tensors="pt")
    assert words.batch_decode(model.generate(**batch), skip_special_tokens=True) == said

    found = json.loads(llmkit("evaluate", "run").stdout)
    trivial = found.pop("trivial")
    assert trivial.keys() == found.keys() - {"eval_loss"}  # how often each token occurs is not kept
    assert trivial == {key: record["trivial"]["metrics"][key]["value"] for key in trivial}
    assert found == pytest.approx({name: told[name] for name in found}, rel=1e-5)


def test_the_metrics_are_those_of_the_texts_that_predict_writes(place, llmkit):
    """After a short training there are mistakes to measure. Evaluated on a file of its own, in CSV."""
    lines = [f"{a},{b}" for a, b in pairs()[120:]]
    (place / "held.csv").write_text("\n".join(["text,summary", *lines]) + "\n")
    (place / "data").mkdir()
    (place / "rows.jsonl").rename(place / "data" / "train.jsonl")
    words = ("trainer.max_steps=20", "generation.num_beams=2", 'data.data_files={train="train.jsonl"}')
    finetune(llmkit, "bart.toml", "data.path=data", *words)
    done = llmkit("evaluate", "run", "run/recipe.toml", "data.path=held.csv")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    done = llmkit("predict", "run", "--input", "held.csv", "--output", "said.jsonl")
    assert done.exit_code == 0, done.stderr
    said = [json.loads(line)["generated_text"] for line in (place / "said.jsonl").read_text().splitlines()]
    right = [b for _, b in pairs()[120:]]
    assert said != right
    assert told["eval_bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, [right], force=True).score)
    assert told["eval_chrf"] == pytest.approx(sacrebleu.corpus_chrf(said, [right]).score)
    scorer = RougeScorer(["rouge2"], use_stemmer=True)
    rouge = [scorer.score(b, a)["rouge2"].fmeasure for a, b in zip(said, right, strict=True)]
    assert told["eval_rouge2"] == pytest.approx(100 * np.mean(rouge))


def test_accumulation_changes_no_loss(place, llmkit):
    words = ("bart.toml", "trainer.max_steps=6", "trainer.logging_steps=1", "trainer.label_smoothing_factor=0.1")
    words += ("trainer.train_sampling_strategy=sequential", "evaluation.metrics=[]")
    finetune(llmkit, *words, "trainer.per_device_train_batch_size=8", name="whole")
    finetune(
        llmkit,
        *words,
        *("trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=4"),
        name="parts",
    )
    assert len(losses(place / "whole")) == 6
    assert losses(place / "parts") == pytest.approx(losses(place / "whole"), rel=1e-4)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_adapter_writes_the_same_in_plain_peft_and_the_rest_stays(kind, place, llmkit):
    from peft import PeftModel

    from llmkit.models import loading

    finetune(llmkit, f"{kind}.toml", "trainer.max_steps=60", *FAMILIES[kind][1], name="base")
    record = finetune(
        llmkit,
        *(f"{kind}.toml", "model.config=", "model.name=base", "tokenizer.type=", "tokenizer.vocab_size="),
        *("trainer.max_steps=10", "lora.r=4", "generation.num_beams=2"),
    )
    assert record["trainable_parameters"] < record["parameters"] / 5
    plain = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained("base"), "run").eval()
    ours = loading.load_model("run", AutoModelForSeq2SeqLM)
    words = AutoTokenizer.from_pretrained("run")
    batch = words([a for a, _ in pairs(8)], padding=True, return_tensors="pt")
    assert ours.generation_config.num_beams == 2
    before = AutoModelForSeq2SeqLM.from_pretrained("base")
    options = {"num_beams": 2, "max_new_tokens": 12}
    assert torch.equal(ours.generate(**batch), plain.generate(**batch, **options))
    start = torch.full((8, 1), before.config.decoder_start_token_id)
    with torch.no_grad():
        ours, plain, before = (model(**batch, decoder_input_ids=start).logits for model in (ours, plain, before))
    assert torch.equal(ours, plain)
    assert not torch.equal(ours, before)


@pytest.mark.parametrize(
    ("kind", "said"),
    [("t5", "does not separate its head"), ("bart", "no separate head: its output layer is its input")],
)
def test_a_head_that_is_the_embeddings_is_not_trained_alone(kind, said, place, llmkit):
    finetune(llmkit, f"{kind}.toml", "trainer.max_steps=1", "evaluation.metrics=[]", name="base")
    done = llmkit(
        *("finetune", f"{kind}.toml", "model.config=", "model.name=base", "tokenizer.type=", "tokenizer.vocab_size="),
        *("model.train=head", "--output-dir", "run"),
    )
    assert done.exit_code == 2
    assert said in done.stderr


def test_the_bundled_recipes_are_of_this_task():
    for name in ("translation", "summarization"):
        assert load(str(bundled()[name])).task == "seq2seq"


def test_chinese_texts_are_scored_by_characters_and_said_to_be(place, llmkit):
    rows = [{"text": f"{n}只猫在{where}里睡觉。", "summary": f"猫在{where}里"} for n in range(20) for where in "山家河"]
    (place / "rows.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")
    done = llmkit("finetune", "bart.toml", "trainer.max_steps=3", "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    assert "references: Chinese, scored by characters" in done.stderr
    record = json.loads(Path("run/run.json").read_text())
    assert (record["scored_by"], record["language"]) == ("characters", "zh")
    done = llmkit("evaluate", "run")
    told = json.loads(done.stdout)
    assert (told["scored_by"], told["language"]) == ("characters", "zh")
    assert "references: Chinese, scored by characters" in done.stderr
    as_words = json.loads(llmkit("evaluate", "run", "evaluation.language=en").stdout)
    assert (as_words["scored_by"], as_words["language"]) == ("words", "en")
    assert as_words["eval_chrf"] == told["eval_chrf"]
    copied, by_words = told["trivial"], as_words["trivial"]  # the source, or its beginning, in the same units
    assert copied["eval_rouge1"] > 30 and by_words["eval_rouge1"] == 0 and copied["eval_chrf"] == by_words["eval_chrf"]
    done = llmkit("evaluate", "run", "evaluation.language=chinese")
    assert done.exit_code == 2
    assert "evaluation.language" in done.stderr
