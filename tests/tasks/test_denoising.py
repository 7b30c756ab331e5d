"""Denoising: what is read is corrupted, what is written is the text, and a model that learned it restores new texts."""

import gzip
import json
import math
import os
import random
import re
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, losses
from torch.utils.data import DataLoader
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BartConfig
from typer.testing import CliRunner

from llmkit.cli import app
from llmkit.data.text import corruption
from llmkit.data.text.documents import Documents
from llmkit.data.text.pack import EVALUATION, Blocks, BlockSpec, TokenStream, Window
from llmkit.errors import UserError
from llmkit.models import tokenizer
from llmkit.recipe.data_tables import DenoisingData
from llmkit.recipe.schema import Model, Tokenizer
from llmkit.recipe.table import ReadOnly
from llmkit.recipe.tasks import TASKS
from llmkit.tasks import denoising
from llmkit.training.progress import MetricsFile

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of DataLoader's workers, Python 3.12 on
STORIES = (ROOT / "recipes/tiny/stories.txt").read_text().splitlines()
KINDS = ("byte-bpe", "wordpiece", "unigram", "characters")
SENTENCE = re.compile(r"(?<=[.!?])\s+")
PERMUTED = {"permutation": 1.0}
INFILLED = {"infilling": 1.0}
SPANS = {"span_corruption": 1.0}
ALL = {"permutation": 1.0, "infilling": 1.0, "span_corruption": 2.0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Tokenizers of each kind, as a run of this task trains them on the stories."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "cache_dir", lambda: tmp_path_factory.getbasetemp() / "tokenizers")
        table = {kind: Tokenizer(type=kind, vocab_size=700) for kind in KINDS}
        documents = {kind: Documents(lambda: iter(STORIES[:200]), f"stories {kind}", "`stories`") for kind in KINDS}
        return {
            kind: tokenizer.load(table[kind], Model(config=ReadOnly()), "denoising", documents[kind], None)
            for kind in KINDS
        }


@pytest.fixture(scope="module")
def words(trained):
    return trained["byte-bpe"]


def config(**keys):
    return BartConfig(pad_token_id=0, bos_token_id=None, eos_token_id=1, decoder_start_token_id=1, **keys)


def data(corruption, **keys):
    return DenoisingData(path="x", corruption=corruption, **keys)


def read(words, text):
    return words(text, add_special_tokens=False)["input_ids"]


def windows(words, texts, epoch=0):
    return [Window(np.array(read(words, text)), np.array([0]), i, epoch) for i, text in enumerate(texts)]


def collate(words, found, corruption, seed=1, settings=None):
    return denoising.collator(data(corruption), words, settings or config(), seed)(found)


def pairs(batch):
    """What is read and what is written in each example, without padding and the token that ends them."""
    sources = [
        ids[mask == 1][:-1].numpy() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    targets = [ids[ids != -100][:-1].numpy() for ids in batch["labels"]]
    return list(zip(sources, targets, strict=True))


# --- batches ----------------------------------------------------------------------------------------------------------


def test_an_example_is_a_document_or_a_piece_of_one(words):
    assert denoising.block_spec(data(ALL), 16) == BlockSpec(14, 14, within_documents=True)
    assert denoising.document_separator(words) == []
    assert TASKS["denoising"].peft_type == "SEQ_2_SEQ_LM"


@pytest.mark.parametrize("corruption", [PERMUTED, {**PERMUTED, "permute": "tokens"}, INFILLED, SPANS])
def test_a_batch_is_source_target_and_the_target_one_place_on(corruption, words):
    batch = collate(words, windows(words, STORIES[:6]), corruption)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "decoder_input_ids"}
    assert all(values.dtype == torch.int64 for values in batch.values())
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["labels"].shape == batch["decoder_input_ids"].shape
    end, pad, start = words.eos_token_id, words.pad_token_id, 1
    for b in range(6):
        shown = batch["attention_mask"][b].sum()
        assert batch["attention_mask"][b].tolist() == [1] * shown + [0] * (batch["attention_mask"].shape[1] - shown)
        assert batch["input_ids"][b, shown - 1] == end
        assert (batch["input_ids"][b, shown:] == pad).all()
        labels = batch["labels"][b][batch["labels"][b] != -100].tolist()
        assert labels[-1] == end
        assert end not in labels[:-1]
        rest = batch["labels"].shape[1] - len(labels)
        assert batch["labels"][b].tolist() == labels + [-100] * rest
        assert batch["decoder_input_ids"][b].tolist() == [start, *labels[:-1], *[pad] * rest]
    assert {len(ids[ids != -100]) for ids in batch["labels"]} != {batch["labels"].shape[1]}  # there is some padding


def test_permuted_tokens_are_the_same_tokens(words):
    found = windows(words, STORIES[:50])
    for window, (source, target) in zip(
        found, pairs(collate(words, found, {**PERMUTED, "permute": "tokens"})), strict=True
    ):
        assert target.tolist() == window.ids.tolist()
        assert sorted(source) == sorted(target)
        assert (source == target).mean() < 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_permuted_sentences_are_what_the_tokenizer_reads_in_that_text(kind, trained):
    words = trained[kind]
    found = windows(words, STORIES[200:240])
    shuffled = pairs(collate(words, found, PERMUTED))
    for window, (source, target) in zip(found, shuffled, strict=True):
        assert target.tolist() == window.ids.tolist()
        text, true = words.decode(source), words.decode(target)
        assert text != true
        assert sorted(SENTENCE.split(text)) == sorted(SENTENCE.split(true))
        assert read(words, text) == source.tolist()
        assert text == text.strip()
    firsts = [words.decode(target).startswith(SENTENCE.split(words.decode(source))[0]) for source, target in shuffled]
    assert 0 < sum(firsts) < 12  # the first sentence stands first in one of ten


@pytest.mark.parametrize("kind", ["byte-bpe", "wordpiece", "characters"])
def test_permuted_sentences_in_chinese_are_whole(kind, tmp_path, monkeypatch):
    """They end with 。！？ and the marks that close what was said, and stand without blanks between them."""
    monkeypatch.setattr(tokenizer, "cache_dir", lambda: tmp_path)
    stories = gzip.decompress((ROOT / "recipes/tiny/stories_zh.txt.gz").read_bytes()).decode().splitlines()[:100]
    texts = [story.replace("。", "！他问：“去哪里？”", 1) for story in stories]
    documents = Documents(lambda: iter(texts), f"chinese {kind}", "`texts`")
    table = Tokenizer(type=kind, vocab_size=2000)
    words = tokenizer.load(table, Model(config=ReadOnly()), "denoising", documents, None)
    sentence = re.compile("[^。！？]*[。！？]”?")
    found = windows(words, texts[:40])
    for source, target in pairs(collate(words, found, PERMUTED)):
        text, true = (words.decode(ids).replace(" ", "") for ids in (source, target))
        assert text != true
        assert sorted(sentence.findall(text)) == sorted(sentence.findall(true))
        assert "".join(sentence.findall(text)) == text


def test_blanks_and_lines_keep_their_places(words):
    text = "Ben ran. Ella saw him!\n\nHe fell.  She cried?"
    found = windows(words, [text] * 30)
    for source, _ in pairs(collate(words, found, PERMUTED)):
        shown = words.decode(source)
        assert re.findall(r"\s{2,}", shown) == ["\n\n", "  "]
        assert sorted(SENTENCE.split(shown)) == sorted(SENTENCE.split(text))
        assert shown != text


def test_a_text_of_one_sentence_is_copied(words):
    found = windows(words, ["Ben ran to the barn", "a", "He saw the kite."])
    for source, target in pairs(collate(words, found, PERMUTED)):
        assert source.tolist() == target.tolist()


def test_an_unknown_token_moves_with_its_sentence(trained):
    words = trained["wordpiece"]
    sentences = ["Ben ran with ☃.", "Ella saw the barn.", "He fell."]
    ids = np.array(read(words, " ".join(sentences)))
    first = ids[: len(read(words, sentences[0]))].tolist()
    assert words.unk_token_id in first
    orders = set()
    for source, _ in pairs(collate(words, [Window(ids, np.array([0]), i, 0) for i in range(20)], PERMUTED)):
        starts = [at for at in range(len(ids)) if source[at : at + len(first)].tolist() == first]
        assert len(starts) == 1
        orders.add(starts[0])
    assert len(orders) > 2


def test_infilled_texts_lack_a_share_of_their_tokens(words):
    found = windows(words, STORIES[:200])
    shares, num_masks = [], 0
    mask = words.mask_token_id
    for window, (source, target) in zip(found, pairs(collate(words, found, INFILLED)), strict=True):
        assert target.tolist() == window.ids.tolist()
        kept = source[source != mask].tolist()
        shares.append(1 - len(kept) / len(target))
        num_masks += (source == mask).sum()
        rest = iter(target.tolist())
        assert all(token in rest for token in kept)  # in their order
    assert np.allclose(shares, 0.3, atol=0.01)
    hidden = sum(0.3 * len(window.ids) for window in found)
    assert 2.7 < hidden / num_masks < 3.3


def test_sentinels_stand_for_the_spans_that_are_to_be_written(words):
    sentinels = np.array([words.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(100)])
    found = windows(words, STORIES[:100])
    for window, (source, target) in zip(found, pairs(collate(words, found, SPANS)), strict=True):
        shown = source[np.isin(source, sentinels)]
        assert shown.tolist() == sentinels[: len(shown)].tolist()
        assert target[np.isin(target, sentinels)].tolist() == sentinels[: len(shown) + 1].tolist()
        hidden = len(target) - len(shown) - 1
        assert hidden == round(0.15 * len(window.ids))
        assert len(shown) == round(hidden / 3)
        assert corruption.restore(source, target, sentinels).tolist() == window.ids.tolist()


@pytest.mark.parametrize("corruption", [PERMUTED, {**PERMUTED, "permute": "tokens"}, INFILLED, SPANS])
def test_special_tokens_in_a_text_are_left_alone(corruption, words):
    special = words.eos_token_id
    ids = np.array([*read(words, STORIES[0])[:40], special, *read(words, STORIES[1])[:40]])
    for source, target in pairs(collate(words, [Window(ids, np.array([0]), i, 0) for i in range(50)], corruption)):
        assert (source == special).sum() == 1
        assert (target == special).sum() == (corruption != SPANS)
        if "permutation" in corruption:
            at = source.tolist().index(special)
            assert sorted(words.decode(source[:at])) == sorted(words.decode(ids[:40]))


def test_the_ways_are_drawn_by_their_weights(words):
    number = 600
    ids = np.array(read(words, " ".join(SENTENCE.split(STORIES[0])[:3])))
    batch = collate(words, [Window(ids, np.array([0]), i, 0) for i in range(number)], ALL)
    infilled = (batch["input_ids"] == words.mask_token_id).any(dim=1)
    spans = (batch["input_ids"] == words.convert_tokens_to_ids("<extra_id_0>")).any(dim=1)
    assert not (infilled & spans).any()
    for found, share in ((infilled, 0.25), (spans, 0.5), (~(infilled | spans), 0.25)):
        assert abs(int(found.sum()) - share * number) < 4.5 * math.sqrt(number * share * (1 - share))


def test_a_way_without_weight_needs_nothing_of_the_tokenizer(words):
    other = AutoTokenizer.from_pretrained(words.name_or_path, mask_token=None)
    assert other.mask_token is None
    assert collate(other, windows(words, STORIES[:2]), PERMUTED)["labels"].shape[0] == 2


def stacked(batch):
    return {name: values.tolist() for name, values in batch.items()}


def test_draws_hang_on_seed_epoch_and_example_alone(words):
    found = windows(words, STORIES[:12])
    whole = pairs(collate(words, found, ALL))
    torch.manual_seed(5)
    np.random.seed(5)
    again = pairs(collate(words, found[::-1], ALL))[::-1]
    alone = [pairs(collate(words, [window], ALL))[0] for window in found]
    for one, two, three in zip(whole, again, alone, strict=True):
        assert one[0].tolist() == two[0].tolist() == three[0].tolist()
        assert one[1].tolist() == two[1].tolist() == three[1].tolist()
    seen = set()
    for seed in (0, 1, 2**32 - 1):
        for epoch in (0, 1, EVALUATION):
            for index in (0, 1, 2**31):
                window = Window(found[0].ids, found[0].starts, index, epoch)
                seen.add(collate(words, [window], INFILLED, seed=seed)["input_ids"].numpy().tobytes())
    assert len(seen) == 27


def blocks(words, evaluation=False):
    texts = [read(words, text) for text in STORIES[:40]]
    tokens = TokenStream(np.concatenate(texts).astype(np.uint16), np.cumsum([len(ids) for ids in texts]), 1)
    return Blocks(tokens, denoising.block_spec(data(ALL), 66), None, evaluation=evaluation)


def test_workers_draw_the_same(words):
    found = []
    for workers in (0, 2):
        collator = denoising.collator(data(ALL), words, config(), 1)
        loader = DataLoader(blocks(words), 8, num_workers=workers, collate_fn=collator)
        found.append([stacked(batch) for batch in loader])
    assert found[0] == found[1]
    assert len(found[0]) > 10


def test_evaluation_draws_the_same_every_time_and_an_epoch_anew(words):
    evaluation, training = blocks(words, evaluation=True), blocks(words)
    before, in_epochs = stacked(collate(words, list(evaluation), ALL)), []
    for epoch in range(2):
        training.set_epoch(epoch)
        evaluation.set_epoch(epoch)
        assert stacked(collate(words, list(evaluation), ALL)) == before
        in_epochs.append(stacked(collate(words, list(training), ALL)))
    assert in_epochs[0] != in_epochs[1]
    assert before not in in_epochs


@pytest.mark.parametrize(
    "corruption",
    [{**INFILLED, "poisson_lambda": 0.1}, {**SPANS, "noise_density": 0.6, "mean_noise_span_length": 1.0}, PERMUTED],
)
def test_source_and_target_are_never_longer_than_the_model_reads(corruption, words):
    limit = 34
    ids = np.array(read(words, STORIES[0])[:32])
    found = [Window(ids, np.array([0]), i, 0) for i in range(200)]
    batch = collate(words, found, corruption, settings=config(max_position_embeddings=limit))
    assert limit - 1 <= max(batch["input_ids"].shape[1], batch["labels"].shape[1]) <= limit
    for name in ("input_ids", "labels"):
        assert (batch[name] == words.eos_token_id).sum(dim=1).eq(1).all()


def test_a_text_stands_between_the_tokens_that_its_tokenizer_sets_around_it(trained):
    from tokenizers.processors import TemplateProcessing

    words = AutoTokenizer.from_pretrained(trained["byte-bpe"].name_or_path, bos_token="<s>")
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", words.bos_token_id), ("</s>", words.eos_token_id)]
    )  # as BART's
    batch = collate(words, windows(words, STORIES[:1]), INFILLED)
    for ids in (batch["input_ids"][0], batch["labels"][0]):
        assert (ids[0], ids[-1]) == (words.bos_token_id, words.eos_token_id)
    assert batch["labels"][0].tolist() == words(STORIES[0])["input_ids"]


def test_metrics():
    sums = np.array([[30.0, 15.0], [2.0, 1.0]])
    found = denoising.metrics(sums, TokenStream(np.zeros(100, np.uint16), np.array([100]), 400))
    assert found == {"loss": 2.0, "perplexity": pytest.approx(math.exp(2))}


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("corruption", "changes", "said", "hint"),
    [
        (INFILLED, {"mask_token_id": None}, "needs a mask token, and the tokenizer has none", "tokenizer.type"),
        (
            SPANS,
            {"get_vocab": dict},
            "needs sentinel tokens (<extra_id_0>, <extra_id_1>, ...), and the tokenizer has none",
            "tokenizer.type",
        ),
        (PERMUTED, {"eos_token_id": None}, "would not learn to stop", "tokenizer.type"),
        (PERMUTED, {"eos_token_id": 5}, "would not learn to stop", "without language codes"),
        (PERMUTED, {"pad_token_id": None}, "no padding token", "tokenizer.name"),
    ],
)
def test_a_tokenizer_that_lacks_something_is_refused(corruption, changes, said, hint, words):
    class Lacking(SimpleNamespace):
        def __getattr__(self, name):
            return getattr(words, name)

        def __call__(self, *args, **keys):
            return words(*args, **keys)

    with pytest.raises(UserError) as caught:
        denoising.collator(data(corruption), Lacking(**changes), config(), 1)
    assert said in caught.value.message
    assert hint in caught.value.hint


# --- runs -------------------------------------------------------------------------------------------------------------

BART = """
model_type = "bart"
encoder_layers = 1
decoder_layers = 1
encoder_attention_heads = 4
decoder_attention_heads = 4
encoder_ffn_dim = 128
decoder_ffn_dim = 128
d_model = 64
max_position_embeddings = 64
dropout = 0.0
init_std = 0.1
"""
T5 = """
model_type = "t5"
num_layers = 1
num_decoder_layers = 1
num_heads = 4
d_kv = 16
d_ff = 128
d_model = 64
dropout_rate = 0.0
"""
RECIPE = """
task = "denoising"
[model.config]
{model}
[tokenizer]
type = "{kind}"
vocab_size = 400
[data]
path = "losses.txt"
sample_by = "line"
validation_fraction = 0.05
block_size = 64
corruption = {{ {corruption} }}
[trainer]
max_steps = {steps}
per_device_train_batch_size = 16
learning_rate = 8e-3
warmup_steps = 20
logging_steps = 1
eval_strategy = "steps"
eval_steps = 1000
eval_on_start = true
"""


def told(number):
    """Stories of five sentences, no two alike: what they tell of differs, the course of events does not."""
    draw, found = random.Random(0), {}
    while len(found) < number:
        who, what, colour, place, helper = map(draw.choice, (NAMES, TOYS, COLOURS, PLACES, HELPERS))
        story = (
            f"{who} lived at the {place}.",
            f"One day {who} lost a {colour} {what}.",
            f"{who} asked the {helper} for help.",
            f"The {helper} found the {colour} {what}.",
            f"So {who} ran home to the {place}.",
        )
        found[story] = None
    return list(found)


NAMES = ("Ben", "Finn", "Jack", "Leo", "Max", "Anna", "Ella", "Ida", "Lucy", "Nora")
TOYS = ("kite", "ball", "drum", "bell", "hat", "scarf", "whistle", "puppet", "flute", "ribbon")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "silver", "golden")
PLACES = ("mill", "hill", "village", "cottage", "farm", "castle", "meadow", "barn")
HELPERS = ("badger", "goat", "donkey", "beaver", "pony", "farmer", "baker", "sailor")
SEEN, UNSEEN = told(2_050)[:2_000], told(2_050)[2_000:]


def write_files(folder, corruption="permutation = 1.0", model=BART, kind="wordpiece", steps=6):
    (folder / "losses.txt").write_text("".join(" ".join(story) + "\n" for story in SEEN))
    recipe = RECIPE.format(model=model, corruption=corruption, kind=kind, steps=steps)
    (folder / "losses.toml").write_text(recipe)


@pytest.fixture(scope="module")
def ordering(tmp_path_factory):
    """A BART of one layer on each side that has learned for 100 steps to put the sentences of stories in order."""
    folder = tmp_path_factory.mktemp("ordering")
    write_files(folder, steps=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner().invoke(app, ["pretrain", "losses.toml", "--output-dir", "run"], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return folder / "run"


@pytest.fixture
def pretrain(workplace, llmkit):
    """`pretrain(name, ..., corruption=, model=, steps=)`: one run of the recipe into a directory of that name."""

    def call(name, *words, **settings):
        write_files(workplace, **settings)
        done = llmkit("pretrain", "losses.toml", *words, "--output-dir", name)
        assert done.exit_code in (0, 75), done.stderr
        return workplace / name

    return call


def evaluations(run):
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [entry["eval_loss"] for entry in entries if "eval_loss" in entry]


def test_shuffled_sentences_of_unseen_stories_are_put_in_order(ordering, llmkit, tmp_path):
    """Chance puts five sentences in order once in 120 times."""
    draw = random.Random(1)
    shuffled = [" ".join(draw.sample(story, len(story))) for story in UNSEEN]
    (tmp_path / "shuffled.txt").write_text("\n".join(shuffled))
    done = llmkit("predict", str(ordering), "--input", str(tmp_path / "shuffled.txt"))
    assert done.exit_code == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(shuffled)
    restored = [row["generated_text"] == " ".join(story) for row, story in zip(rows, UNSEEN, strict=True)]
    assert len(restored) == 50
    assert sum(restored) >= 45  # 50 when this was written


def test_the_loss_of_unseen_texts_falls_by_half_in_ordering(ordering):
    before, after = evaluations(ordering)
    assert after < before / 2
    figures = json.loads((ordering / "run.json").read_text())["metrics"]
    assert figures["eval_perplexity"] == pytest.approx(math.exp(after))


@pytest.mark.parametrize(("way", "model"), [("infilling", BART), ("span_corruption", T5)], ids=["bart", "t5"])
def test_the_loss_of_unseen_texts_falls_by_half(way, model, pretrain):
    before, after = evaluations(pretrain("run", corruption=f"{way} = 1.0", model=model, steps=40))
    assert after < before / 2


def test_evaluate_writes_the_loss_of_each_text(ordering, llmkit, tmp_path):
    done = llmkit("evaluate", str(ordering), "--output", str(tmp_path / "texts.jsonl"))
    assert done.exit_code == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    total = sum(row["tokens"] for row in rows)
    loss = sum(row["loss"] * row["tokens"] for row in rows) / total
    assert loss == pytest.approx(json.loads(done.stdout)["eval_loss"], abs=1e-5)
    assert len({row["document"] for row in rows}) == len(rows) > 20


def test_a_finished_run_is_a_model_that_writes(ordering, llmkit):
    model, words = AutoModelForSeq2SeqLM.from_pretrained(ordering), AutoTokenizer.from_pretrained(ordering)
    assert model.generation_config.max_new_tokens == 64
    assert words.mask_token == "<mask>"
    text = "Ella asked the goat for help. Ella lived at the mill."
    expected = words.decode(model.generate(words(text, return_tensors="pt")["input_ids"])[0], skip_special_tokens=True)
    long = text * 9  # BART has no position 65: it is cut where training cuts
    for place in (ordering, ordering / "checkpoint-100"):
        done = llmkit("predict", str(place), text, long)
        assert done.exit_code == 0, done.stderr
        first, second = [json.loads(line) for line in done.stdout.splitlines()]
        assert first == {"generated_text": expected.strip()}
        assert list(second) == ["generated_text"]


def test_how_much_is_written_is_the_block_size_unless_the_recipe_says_otherwise():
    for said, expected in ((None, 24), (7, 7)):
        model = SimpleNamespace(
            config=config(max_position_embeddings=32),
            generation_config=SimpleNamespace(max_length=None, max_new_tokens=said),
        )
        denoising.prepare_model(model, data(PERMUTED, block_size=24))
        assert model.generation_config.max_new_tokens == expected


def test_pretraining_goes_on_from_weights_that_were_saved(ordering, pretrain):
    words = (f"model.name={ordering}", "model.config=", "tokenizer=")
    second = pretrain("second", *words, "trainer.learning_rate=0", steps=1)
    assert evaluations(second)[0] == pytest.approx(evaluations(ordering)[-1], rel=1e-5)
    adapted = pretrain("adapted", *words, "lora.r=2", corruption="infilling = 1.0", steps=2)
    assert (adapted / "adapter_config.json").exists()


@pytest.mark.long
def test_a_stopped_run_goes_on_to_the_same_weights(pretrain, monkeypatch):
    """One run has two workers and is stopped in its second epoch, the other has none and is not."""
    settings = {"corruption": "permutation = 1, infilling = 1, span_corruption = 1", "kind": "byte-bpe", "steps": 24}
    short = "data.max_train_samples=240"  # 15 steps an epoch
    whole = pretrain("whole", short, **settings)
    logged = MetricsFile.on_log

    def stop(self, args, state, control, **kwargs):
        logged(self, args, state, control, **kwargs)
        if state.global_step == 17:
            os.kill(os.getpid(), signal.SIGTERM)

    words = (short, "trainer.dataloader_num_workers=2")
    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "on_log", stop)
        parts = pretrain("parts", *words, **settings)
    assert not (parts / "model.safetensors").exists()
    pretrain("parts", *words, "--resume", **settings)
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert losses(parts) == losses(whole)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.corruption.permutation=0"], "give a weight"),
        (["data.corruption.permutations=1"], "did you mean `data.corruption.permutation=1`"),
        (["data.corruption.infilling=-1"], "must be at least 0"),
        (["model.config=", 'model.config.model_type="gpt2"'], "GPT2 (gpt2) is a decoder"),
        (["data.block_size=2"], "leaves no room for text"),
    ],
)
def test_a_mistake_is_told_in_words(words, said, workplace, llmkit):
    write_files(workplace)
    done = llmkit("pretrain", "losses.toml", *words)
    assert done.exit_code == 2, done.stderr
    assert said.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr
