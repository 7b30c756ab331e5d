"""Question answering: windows that lose nothing, answers that stand where they should, and when there is none."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import losses
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedTokenizerFast

from llmkit import metrics as measures
from llmkit.data import files
from llmkit.data.rows import answering as reader
from llmkit.data.rows.batches import collator
from llmkit.data.rows.table import Rows
from llmkit.errors import UserError
from llmkit.language import Units
from llmkit.recipe.data_tables import AnsweringData
from llmkit.tasks import question_answering as qa

NUMBERED = " ".join(f"word{number}" for number in range(200))
# Accents of their own, emoji of several code points, spaces of every kind, characters without spaces between them.
STRANGE = "  Zoë  Müller saw 👍🏽 in the cafe\u0301 noir\n\n\u00a0of Straße 12 in 東京 at\t20 °C "
STRANGE_ANSWERS = (
    "Zoë  Müller",
    "👍🏽",
    "cafe\u0301",
    "cafe\u0301 noir",
    "Straße 12",
    "東京",
    "20 °C",
    "Zoë",
    "noir",
    "12",
)


def trained(backend, trainer, **tokens):
    backend.train_from_iterator([STRANGE, NUMBERED, "who? what? where is it, then: there"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **tokens)


def wordpiece():
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)  # and without accents
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend.post_processor = processors.TemplateProcessing(
        pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    words = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    return trained(backend, words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def byte_bpe(**tokens):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if "cls_token" in tokens:
        backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1), True, False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    words = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    return trained(backend, words, pad_token="<pad>", **tokens)


def unigram():
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        pair="$A <sep> $B:1 <sep>:1 <cls>:2", special_tokens=[("<sep>", 2), ("<cls>", 3)]
    )
    special = ["<pad>", "<unk>", "<sep>", "<cls>"]
    words = trainers.UnigramTrainer(vocab_size=100, special_tokens=special, unk_token="<unk>", show_progress=False)
    return trained(backend, words, pad_token="<pad>", unk_token="<unk>", sep_token="<sep>", cls_token="<cls>")


# As those of BERT, RoBERTa, GPT-2 (offsets that hold the space before a word, no special tokens) and XLNet (CLS last).
TOKENIZERS = {
    "wordpiece": wordpiece,
    "roberta": lambda: byte_bpe(bos_token="<s>", cls_token="<s>", sep_token="</s>"),
    "gpt2": lambda: byte_bpe(bos_token="</s>", eos_token="</s>"),
    "unigram": unigram,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def words(request):
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def bert():
    return wordpiece()


def row(context, *answers, question="who?"):
    """A row as the Hub has it; answers are texts, or (start, text)."""
    placed = [a if isinstance(a, tuple) else (context.index(a), a) for a in answers]
    return {
        "question": question,
        "context": context,
        "answers": {"text": [text for _, text in placed], "answer_start": [start for start, _ in placed]},
    }


def table(rows):
    read = lambda: ((f"row {number}", each) for number, each in enumerate(rows, 1))  # noqa: E731
    return Rows(read, tuple(rows[0]), {}, "", "`made up`")


def settings(**keys):
    return AnsweringData(path="-", **{"stride": 8, **keys})


def encoded(rows, words, length=40, data=None):
    data = data or settings()
    found = table(rows)
    return qa.encode(found, reader.resolve_columns(data, found), words, data, length)


def prepared(rows, words, length=40, training=False, **keys):
    """Examples for evaluation (or for training), and how answers are found in them."""
    data = settings(**keys)
    part = encoded(rows, words, length, data)
    known = qa.resolve_labels(
        data, {}, part if training else None, {} if training else {"validation": part}, None, False
    )
    return qa.examples(part, known, evaluation=not training), known


def kept(part, words, known, logits, size=3):
    """What is kept of every window, in batches of `size`; `logits(index, T)` gives the starts' and the ends'."""
    found = []
    for begin in range(0, len(part), size):
        batch = collator(words)([part[i] for i in range(begin, min(begin + size, len(part)))])
        pairs = [logits(index, batch["input_ids"].shape[1]) for index in batch["index"].tolist()]
        start, end = (torch.tensor(np.array(each), dtype=torch.float32) for each in zip(*pairs, strict=True))
        found.append(
            qa.preprocess_logits_for_metrics(
                None, SimpleNamespace(start_logits=start, end_logits=end), batch, known
            ).numpy()
        )
    return np.concatenate(found)


def said(part, words, known, logits, size=3):
    return dict(qa.postprocess(kept(part, words, known, logits, size), part, known))


def pointing(part):
    """Logits of a model that has learned the labels by heart."""

    def logits(index, size):
        return [np.where(np.arange(size) == token, 9.0, 0.0) for token in part.labels[index]]

    return logits


def test_a_csv_with_text_and_start_in_columns(tmp_path, bert):
    (tmp_path / "rows.csv").write_text("question,context,answer,answer_start\nwho?,a b a b,b,6\nwho?,a b a b,,\n")
    rows = [found for _, found in files.read_rows(tmp_path / "rows.csv")]
    assert [answers for _, _, answers in encoded(rows, bert).targets] == [[(6, "b")], []]


def test_an_answer_without_a_place_is_compared_with_and_not_learned(bert):
    rows = [row("the red fox", (0, "wolf"), (8, "fox")), row("the red fox", (0, "wolf"))]
    part, known = prepared(rows, bert)
    first, second = part.labels.tolist()
    assert part.inputs["offset_start"][0][first[0]] == 8
    assert part.inputs["offset_start"][1][second[0]] == qa.NO_ANSWER
    found = kept(part, bert, known, pointing(part))
    assert qa.predictions_and_references(found, part)[1] == [["wolf", "fox"], ["wolf"]]


# --- windows ----------------------------------------------------------------------------------------------------------


def windows_of(part, number):
    return [window for window, row_number in enumerate(part.row) if row_number == number]


@pytest.mark.parametrize("stride", [0, 8, 17])
def test_windows_hold_every_token_and_overlap_by_the_stride(words, stride):
    contexts = ["a b c", "", NUMBERED, " ".join([STRANGE] * 9), f"{NUMBERED} " * 15]  # of 3,000 words the last
    part = encoded([row(context) for context in contexts], words, 40, settings(stride=stride))
    question = words("who?", add_special_tokens=False)["input_ids"]
    special = words.num_special_tokens_to_add(pair=True)
    for number, context in enumerate(contexts):
        whole = words(context, add_special_tokens=False)["input_ids"]
        room = 40 - len(question) - special
        held = []
        for window in windows_of(part, number):
            ids = part.inputs["input_ids"][window].tolist()
            assert len(ids) <= 40
            begin = next(i for i in range(len(ids)) if ids[i : i + len(question)] == question)
            inside = ids[begin + len(question) :]
            held.append(
                [token for token in inside if token not in words.all_special_ids or token == words.unk_token_id]
            )
        expected = [whole[at : at + room] for at in range(0, max(1, len(whole) - stride), room - stride)]
        assert held == expected
        assert part.lengths[number] == len(whole) + len(question) + special


def test_each_token_says_where_it_stands_in_the_text_as_it_was(words):
    part = encoded([row(STRANGE)], words, 400, settings(stride=100))
    starts, ends = part.inputs["offset_start"][0], part.inputs["offset_end"][0]
    inside = starts >= 0
    pieces = [STRANGE[a:b] for a, b in zip(starts[inside], ends[inside], strict=True)]
    assert all(piece and piece == piece.strip() for piece in pieces)
    covered = {place for a, b in zip(starts[inside], ends[inside], strict=True) for place in range(a, b)}
    missed = "".join(character for place, character in enumerate(STRANGE) if place not in covered)
    assert missed.replace("\u0301", "").strip() == ""  # BERT's normalizer takes accents away


@pytest.mark.parametrize("length", [40, 400])
def test_an_answer_is_found_as_it_was_written(words, length):
    rows = [row(STRANGE * 3, (len(STRANGE) + STRANGE.index(text), text)) for text in STRANGE_ANSWERS]
    part, known = prepared(rows, words, length, stride=17, max_answer_length=40)
    found = said(part, words, known, pointing(part))
    assert [found[number]["answer"] for number in range(len(rows))] == list(STRANGE_ANSWERS)
    for number, text in enumerate(STRANGE_ANSWERS):
        start = len(STRANGE) + STRANGE.index(text)
        assert (found[number]["start"], found[number]["end"]) == (start, start + len(text))


def test_an_answer_deep_in_a_long_text(words):
    context = " ".join(["filler"] * 2990 + ["the answer stands here"])
    part, known = prepared([row(context, "stands here")], words, 384, stride=128)
    assert said(part, words, known, pointing(part))[0]["answer"] == "stands here"


def test_a_window_teaches_an_answer_only_if_it_holds_all_of_it(words):
    """Every span of up to five words, against the tokens of the text counted by hand."""
    context = " ".join(NUMBERED.split()[:30])
    whole = words(context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    room = 40 - words.num_special_tokens_to_add(pair=True) - len(words("who?", add_special_tokens=False)["input_ids"])
    listed = context.split(" ")
    texts = [" ".join(listed[a : a + size]) for a in range(30) for size in range(1, 6) if a + size <= 30]
    part = encoded([row(context, text) for text in texts], words)
    labels, unlearned = qa.spans(part)
    cut, holding = 0, set()
    for number, text in enumerate(texts):
        start = context.index(text)
        answer = [i for i, (a, b) in enumerate(whole) if b > start and a < start + len(text)]
        for order, window in enumerate(windows_of(part, number)):
            first = order * (room - 8)
            inside = range(first, min(first + room, len(whole)))
            offset = part.inputs["offset_start"][window]
            shift = int(np.flatnonzero(offset >= 0)[0])
            nothing = int(np.flatnonzero(offset == qa.NO_ANSWER)[0])
            held = answer[0] in inside and answer[-1] in inside
            cut += not held and (answer[0] in inside or answer[-1] in inside)
            holding |= {number} if held else set()
            expected = [answer[0] - first + shift, answer[-1] - first + shift] if held else [nothing, nothing]
            assert labels[window].tolist() == expected
    assert cut > 0
    assert unlearned == [number for number in range(len(texts)) if number not in holding]


def test_of_several_answers_the_first_is_learned_and_each_counts(bert):
    part, known = prepared([row("the red fox saw a hen", "red fox", "fox")], bert)
    found = kept(part, bert, known, pointing(part))
    assert qa.predictions_and_references(found, part) == (["red fox"], [["red fox", "fox"]])


def test_rows_without_text_and_without_answer_are_counted(words):
    rows = [row("a b", "a"), row(" "), row("a b", question=" "), row("", question=""), row("a b")]
    part = encoded(rows, words)
    assert part.empty == [1, 2, 3]
    assert qa.label_counts(part, None) == {"answerable": 1, "unanswerable": 4}
    assert part.keys[0] == part.keys[4] != part.keys[1]
    evaluated, known = prepared(rows, words)
    answers = said(evaluated, words, known, lambda index, size: np.zeros((2, size)))
    assert [answers[number]["answer"] == "" for number in (1, 3)] == [True, True]


def test_a_tokenizer_without_places_is_refused():
    with pytest.raises(UserError) as caught:
        encoded([row("a b", "a")], SimpleNamespace(is_fast=False))
    assert "does not give the character offsets of its tokens" in caught.value.message


def test_no_answer_is_cls_wherever_the_tokenizer_puts_it():
    for name, token in (("wordpiece", "[CLS]"), ("roberta", "<s>"), ("unigram", "<cls>")):
        words = TOKENIZERS[name]()
        part = encoded([row(NUMBERED, question=f"{token} who?")], words)
        for window in range(len(part.row)):
            marked = np.flatnonzero(part.inputs["offset_start"][window] == qa.NO_ANSWER)
            ids = part.inputs["input_ids"][window]
            assert marked.tolist() == [len(ids) - 1 if name == "unigram" else 0]
            assert words.decode(ids[marked]) == token
    part = encoded([row(NUMBERED)], TOKENIZERS["gpt2"]())
    assert all(part.inputs["offset_start"][window][0] == qa.NO_ANSWER for window in range(len(part.row)))


def test_rows_whose_answer_no_window_holds_teach_nothing(bert):
    rows = [row(NUMBERED, "word7"), row(NUMBERED, " ".join(NUMBERED.split()[20:80])), row(NUMBERED)]
    training, _ = prepared(rows, bert, training=True)
    assert set(training.row[[training[i]["index"] for i in range(len(training))]]) == {0, 2}
    assert len(training.lengths) == len(training)
    evaluated, _ = prepared(rows, bert)
    assert {int(evaluated.row[evaluated[i]["index"]]) for i in range(len(evaluated))} == {0, 1, 2}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(NUMBERED)], "no question has an answer: nothing"),
        ([row(NUMBERED, NUMBERED)], "no question has an answer that fits in a window: nothing"),
    ],
)
def test_nothing_to_learn_is_an_error(rows, message, bert):
    with pytest.raises(UserError) as caught:
        prepared(rows, bert, training=True)
    assert message in caught.value.message


def test_a_long_question_leaves_room_for_the_context(words):
    longest = (40 - words.num_special_tokens_to_add(pair=True) - 8) // 2
    for question in (NUMBERED, "👍🏽" * 50, "\u0301" * 90, "東京" * 90):
        part = encoded([row(NUMBERED, "word199", question=question)], words)
        tokens = words(question, add_special_tokens=False)["input_ids"]
        assert part.cut == [max(0, len(tokens) - longest)]
        assert max(part.inputs["input_ids"].lengths) <= 40
        assert qa.spans(part)[1] == []
        if len(tokens) > longest:
            step = 40 - words.num_special_tokens_to_add(pair=True) - longest - 8
            assert len(part.row) <= -(-part.lengths[0] // step)


@pytest.mark.parametrize(
    ("length", "stride", "fits"), [(4, 0, False), (5, 0, True), (40, 20, False), (40, 19, True), (256, 128, False)]
)
def test_a_stride_that_leaves_no_room_is_refused(length, stride, fits, bert):
    data = settings(stride=stride)
    if fits:
        part = encoded([row(NUMBERED, question=NUMBERED)], bert, length, data)
        assert max(part.inputs["input_ids"].lengths) == length
        return
    with pytest.raises(UserError) as caught:
        encoded([row(NUMBERED)], bert, length, data)
    assert f"data.stride = {stride} leaves no room in inputs of {length} tokens" in caught.value.message
    assert caught.value.hint == ("raise data.max_length" if length == 4 else f"lower it, for example to {length // 3}")


# --- predictions ------------------------------------------------------------------------------------------------------


def brute_force(part, logits, known):
    """Every span of every window, one after the other."""
    answers = {}
    for number in sorted(set(part.row.tolist())):
        best, null = {}, []
        for window in np.flatnonzero(part.row == number).tolist():
            starts, ends = part.inputs["offset_start"][window].tolist(), part.inputs["offset_end"][window].tolist()
            start, end = (each.tolist() for each in logits(window, len(starts)))
            nothing = starts.index(qa.NO_ANSWER)
            null.append(start[nothing] + end[nothing])
            for a in range(len(starts)):
                for b in range(a, min(a + known.max_answer_length, len(starts))):
                    if starts[a] >= 0 and starts[b] >= 0:
                        place = starts[a], ends[b]
                        best[place] = max(best.get(place, -1e9), start[a] + end[b])
        spans = sorted((-score, *place) for place, score in best.items())[: known.n_best_size]
        answers[number] = [(-score, a, b) for score, a, b in spans], min(null)
    return answers


@pytest.mark.parametrize("size", [1, 3, 20, 2000])
@pytest.mark.parametrize("longest", [1, 4, 300])
def test_the_best_spans_are_those_of_a_search_through_all(size, longest, bert):
    contexts = [NUMBERED[:400], "a b", NUMBERED[:90], "", "Straße in 東京"]
    part, known = prepared(
        [row(context) for context in contexts], bert, 32, n_best_size=size, max_answer_length=longest
    )
    for seed, spread in ((0, 3), (1, 30), (2, 1000)):  # many equal scores, some, next to none; their sums are exact

        def logits(index, tokens, seed=seed, spread=spread):
            draw = np.random.default_rng([seed, index])
            return draw.integers(-spread, spread, (2, 64))[:, :tokens] / 8

        found = said(part, bert, known, logits)
        for number, (spans, null) in brute_force(part, logits, known).items():
            ranked = [(each["start"], each["end"]) for each in found[number]["n_best"] if each["start"] is not None]
            assert ranked == [(a, b) for _, a, b in spans]
            for each in found[number]["n_best"]:
                assert each["text"] == ("" if each["start"] is None else contexts[number][each["start"] : each["end"]])
            none = not spans or null > spans[0][0]
            assert found[number]["answer"] == ("" if none else contexts[number][slice(*ranked[0])])
            weights = np.exp([score for score, _, _ in spans] + [null])
            shares = [each["score"] for each in found[number]["n_best"] if each["start"] is not None]
            shares += [each["score"] for each in found[number]["n_best"] if each["start"] is None]
            assert shares == pytest.approx(weights / weights.sum(), abs=1e-6)


def test_predictions_are_the_same_one_at_a_time_and_in_batches(words):
    """What stands in the padding is never an answer, however high its logits are."""
    part, known = prepared([row(NUMBERED[:size]) for size in (4, 90, 30, 300, 8)], words)

    def logits(index, size):
        own = len(part.inputs["input_ids"][index])
        found = np.full((2, size), 50.0)
        found[:, :own] = np.random.default_rng(index).normal(size=(2, own))
        return found

    alone = said(part, words, known, logits, size=1)
    assert said(part, words, known, logits, size=3) == alone
    assert said(part, words, known, logits, size=100) == alone


def logits_of(scores):
    """Logits by window: {token: score}, the same as a start and as an end, and very low elsewhere."""

    def logits(index, size):
        found = np.full((2, size), -50.0)
        for token, score in scores[index].items():
            found[:, token] = score
        return found

    return logits


@pytest.mark.parametrize(
    ("null", "threshold", "unanswerable", "answer"),
    [
        (2.1, 0.0, True, ""),
        (1.9, 0.0, True, "b"),
        (2.0, 0.0, True, "b"),  # not above
        (3.0, 2.5, True, "b"),  # 2 x 3.0 - 2 x 2.0 = 2.0
        (3.5, 2.5, True, ""),
        (1.0, -2.5, True, ""),
        (0.5, -2.5, True, "b"),
        (9.0, 0.0, False, "b"),
    ],
)
def test_no_answer_is_given_above_the_threshold(null, threshold, unanswerable, answer, bert):
    rows = [row("a b c", "b"), *([row("a b c")] if unanswerable else [])]
    part, known = prepared(rows, bert, null_score_diff_threshold=threshold)
    begin = int(np.flatnonzero(part.inputs["offset_start"][0] >= 0)[0])
    found = said(part, bert, known, logits_of([{0: null, begin + 1: 2.0}] * 2))
    assert found[0]["answer"] == answer
    assert found[0] == {**found[0], "score": found[0]["n_best"][0]["score"], "start": found[0]["n_best"][0]["start"]}
    assert ("" in [each["text"] for each in found[0]["n_best"]]) is unanswerable
    assert (found[0]["start"], found[0]["end"]) == ((None, None) if answer == "" else (2, 3))
    assert sum(each["score"] for each in found[0]["n_best"]) == pytest.approx(1, abs=1e-4)


def test_one_window_that_is_sure_of_its_answer_is_enough(bert):
    """The other windows say rightly that there is no answer in them."""
    part, known = prepared([row(NUMBERED[:400])], bert)
    begin = int(np.flatnonzero(part.inputs["offset_start"][1] >= 0)[0])
    unsure = [{0: 9.0}] * len(part)
    assert len(part) > 2
    assert said(part, bert, known, logits_of(unsure))[0]["answer"] == ""
    sure = [unsure[0], {0: 1.0, begin: 2.0}, *unsure[2:]]
    assert said(part, bert, known, logits_of(sure))[0]["start"] == part.inputs["offset_start"][1][begin]


def test_where_every_question_has_an_answer_one_is_always_given(words):
    contexts = ["  a \n\n\n b  " * 20, "\t\t\tc", STRANGE]
    rows = [row(context, next(c for c in context if not c.isspace())) for context in contexts]
    part, known = prepared(rows, words, n_best_size=1)
    assert not known.unanswerable
    assert qa.metric_names(known) == ("exact_match", "f1")
    for seed in range(20):

        def logits(index, size, seed=seed):
            found = np.random.default_rng([seed, index]).normal(size=(2, 64))[:, :size]
            found[:, part.inputs["offset_start"][index][:size] < 0] += 50  # all that an answer cannot be made of
            return found

        for each in said(part, words, known, logits, size=1).values():
            assert each["answer"]
            assert each["answer"] == each["answer"].strip()


def test_metrics_are_those_of_the_answers_given(bert):
    contexts = ["the red fox saw a hen", "an owl", f"{NUMBERED[:300]} in the end", "nobody"]
    golds = [["red fox", "the red fox"], ["owl"], ["the end"], []]
    given = ["fox saw", "owl", "the end", "nobody"]
    part, known = prepared([row(c, *texts) for c, texts in zip(contexts, golds, strict=True)], bert)
    as_given, _ = prepared([row(c, text) for c, text in zip(contexts, given, strict=True)], bert)
    part.labels = as_given.labels
    found = kept(part, bert, known, pointing(part))
    assert qa.predictions_and_references(found, part) == (given, golds)
    assert qa.metrics(found, part) == measures.squad(given, golds)
    assert qa.metrics(found, part)["NoAns_f1"] == 0
    assert qa.metrics(found[::-1], part) == measures.squad(given, golds)  # in whatever order windows come
    assert set(qa.metrics(found, part)) == set(qa.metric_names(known))


def test_losses_are_transformers_own():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = BertForQuestionAnswering(config).eval()
    ids, labels = torch.randint(0, 50, (6, 20)), torch.randint(0, 20, (6, 2))
    known = qa.AnswerSettings(20, 30, 0.0, True)
    outputs = model(ids, start_positions=labels[:, 0], end_positions=labels[:, 1])
    batch = {"labels": labels, "attention_mask": torch.ones_like(ids)}
    found = qa.losses(outputs, batch, known)
    assert found.shape == (6, 2)
    assert found.mean().item() == pytest.approx(outputs.loss.item(), rel=1e-6)
    smooth = qa.losses(outputs, batch, known, training=True, label_smoothing=0.1)
    uniform = -torch.log_softmax(torch.stack([outputs.start_logits, outputs.end_logits], 1), -1).mean(-1)
    torch.testing.assert_close(smooth, 0.9 * found + 0.1 * uniform)
    assert qa.losses(outputs, batch, known, label_smoothing=0.1).equal(found)  # evaluation is without


def test_padding_changes_no_loss():
    """Upstream's loss counts padding among the tokens: it would depend on what else is in the batch."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = BertForQuestionAnswering(config).eval()
    ids, labels = torch.randint(0, 50, (1, 12)), torch.tensor([[3, 5]])
    known = qa.AnswerSettings(20, 30, 0.0, True)
    for smoothing in (0.0, 0.1):
        found = []
        for length in (12, 20):
            padded = F.pad(ids, (0, length - 12))
            mask = (torch.arange(length) < 12).long()[None]
            outputs = model(padded, attention_mask=mask)
            batch = {"labels": labels, "attention_mask": mask}
            found.append(qa.losses(outputs, batch, known, training=True, label_smoothing=smoothing))
        torch.testing.assert_close(found[0], found[1])


# --- through the command ----------------------------------------------------------------------------------------------

RECIPE = """
task = "question-answering"
[model.config]
model_type = "bert"
num_hidden_layers = 2
num_attention_heads = 2
hidden_size = 64
intermediate_size = 128
max_position_embeddings = 32
hidden_dropout_prob = 0.0
attention_probs_dropout_prob = 0.0
[tokenizer]
type = "wordpiece"
vocab_size = 200
lowercase = true
[data]
path = "rows.jsonl"
validation_fraction = 0.2
max_length = 32
stride = 8
[trainer]
num_train_epochs = 8
per_device_train_batch_size = 16
learning_rate = 3e-3
warmup_steps = 0.1
train_sampling_strategy = "group_by_length"
"""


@pytest.fixture
def place(workplace):
    (workplace / "recipe.toml").write_text(RECIPE)
    return workplace


def write(place, rows):
    (place / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))


def counting(number, unanswerable=True):
    """Texts of one to five sentences, one of which (or, of every third text, none) has a number in it."""
    draw = random.Random(0)
    rows = []
    for index in range(number):
        told = [
            f"the {draw.choice(('fox', 'hen', 'owl'))} {draw.choice(('saw', 'fed', 'led'))} "
            f"some {draw.choice(('cats', 'dogs'))} in the {draw.choice(('wood', 'yard', 'house'))}."
            for _ in range(draw.randint(1, 5))
        ]
        count = str(draw.randint(10, 99))
        if not unanswerable or index % 3:
            which = draw.randrange(len(told))
            told[which] = told[which].replace("some", count)
            rows.append(row(" ".join(told), count, question="how many were there?"))
        else:
            rows.append(row(" ".join(told), question="how many were there?"))
    return rows


def test_a_model_learns_to_answer_and_when_there_is_no_answer(place, llmkit):
    write(place, counting(600))
    done = llmkit("finetune", "recipe.toml", "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    found = json.loads((place / "run" / "run.json").read_text())["metrics"]
    assert found["eval_f1"] > 80
    assert found["eval_NoAns_exact"] > 80
    assert losses(place / "run")[-1] < losses(place / "run")[0]

    # Nothing hangs on the size of the batches that a model is evaluated in.
    figures = []
    for size in (1, 7, 64):
        done = llmkit("evaluate", "run", f"trainer.per_device_eval_batch_size={size}")
        assert done.exit_code == 0, done.stderr
        figures.append({key: value for key, value in json.loads(done.stdout).items() if key != "eval_loss"})
    assert figures[0] == figures[1] == figures[2]
    assert figures[0]["eval_f1"] == pytest.approx(found["eval_f1"])

    # By hand, on texts that it has not seen.
    asked = [
        {"question": "how many were there?", "context": "the owl led 57 dogs in the house. the hen fed some cats."},
        {"question": "how many were there?", "context": "the owl led some dogs in the yard."},
    ]
    (place / "asked.jsonl").write_text("".join(json.dumps(each) + "\n" for each in asked))
    done = llmkit("predict", "run", "--input", "asked.jsonl")
    assert [json.loads(line)["answer"] for line in done.stdout.splitlines()] == ["57", ""]


def test_answers_that_do_not_stand_where_they_should_are_left_out_or_mended_aloud(place, llmkit):
    rows = counting(40, unanswerable=False)
    rows[4]["answers"]["text"] = ["eleven"]
    rows[7]["answers"]["answer_start"] = [0]
    write(place, rows)
    done = llmkit("finetune", "recipe.toml", "--output-dir", "run", "trainer.max_steps=1")
    assert done.exit_code == 0, done.stderr
    said = done.stderr
    assert "1 row left out: answer not in its context" in said
    assert "/rows.jsonl`, line 5" in said
    assert "1 row mended: `answer_start` was wrong; the answer occurs once elsewhere" in said
    assert "/rows.jsonl`, line 8" in said


def test_a_question_whose_answer_has_no_place_is_evaluated(place, llmkit):
    rows = counting(24, unanswerable=False)
    write(place, rows)
    rows[0]["answers"]["text"] = ["eleven"]
    (place / "held.jsonl").write_text(json.dumps(rows[0]) + "\n")
    done = llmkit("finetune", "recipe.toml", "--output-dir", "run", "trainer.max_steps=1")
    assert done.exit_code == 0, done.stderr
    done = llmkit("evaluate", "run", "data.path=held.jsonl", "data.validation_fraction=0")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["eval_exact_match"] == 0


def test_answers_in_chinese_are_scored_by_characters(place, llmkit):
    contexts = [f"老王在{year}年搬到了北京市。" for year in range(1960, 2000)]
    rows = [
        {"question": "老王搬到了哪里？", "context": each, "answers": {"text": ["北京市"], "answer_start": [11]}}
        for each in contexts
    ]
    write(place, rows)
    done = llmkit("finetune", "recipe.toml", "--output-dir", "run", "trainer.max_steps=1")
    assert done.exit_code == 0, done.stderr
    told = json.loads(llmkit("evaluate", "run").stdout)
    assert (told["scored_by"], told["language"]) == ("characters", "zh")
    done = llmkit("predict", "run", "--input", "rows.jsonl")
    found = [json.loads(line)["answer"] for line in done.stdout.splitlines()]
    figures = measures.squad(found, [["北京市"]] * len(rows), Units("zh", True, False))
    told = json.loads(llmkit("evaluate", "run", "data.path=rows.jsonl", "data.validation_fraction=0").stdout)
    assert {name: told[f"eval_{name}"] for name in figures} == pytest.approx(figures)
