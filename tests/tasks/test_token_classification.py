"""Tagging: windows that label every word once, tags of every scheme, entities that stand where they say."""

import json
import random
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import seqeval.metrics
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

from llmkit import metrics as measures
from llmkit.data.rows.batches import models_own
from llmkit.data.rows.table import Rows
from llmkit.errors import UserError
from llmkit.recipe.data_tables import TaggingData
from llmkit.tasks import token_classification as tagging

PLAIN = ["Zoë", "Müller", "saw", "some", "foxes", "in", "unbelievably", "Straße", "東京", "12", "👍🏽", "e\u0301te"]
NOTHING = "\x07"  # BERT's normalizer drops control characters: no token


def trained(backend, trainer, **tokens):
    backend.train_from_iterator([" ".join(PLAIN), "a fox and all words of 20 rows"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **tokens)


def wordpiece():
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    return trained(backend, words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def byte_bpe(prefix=False, special=True):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    if special:
        backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1), True, prefix)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    names = ["<pad>", "<s>", "</s>"]
    words = trainers.BpeTrainer(vocab_size=330, special_tokens=names, initial_alphabet=alphabet, show_progress=False)
    return trained(backend, words, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def unigram():
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="$A <sep> <cls>:2", special_tokens=[("<sep>", 2), ("<cls>", 3)]
    )
    special = ["<pad>", "<unk>", "<sep>", "<cls>"]
    words = trainers.UnigramTrainer(vocab_size=100, special_tokens=special, unk_token="<unk>", show_progress=False)
    return trained(backend, words, pad_token="<pad>", unk_token="<unk>", sep_token="<sep>", cls_token="<cls>")


# As those of BERT, RoBERTa, GPT-2 (no special tokens) and XLNet (CLS last).
TOKENIZERS = {"wordpiece": wordpiece, "roberta": byte_bpe, "gpt2": lambda: byte_bpe(special=False), "unigram": unigram}


@pytest.fixture(scope="module", params=TOKENIZERS)
def words(request):
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def bert():
    return wordpiece()


def table(rows, **class_names):
    read = lambda: ((f"row {number}", each) for number, each in enumerate(rows, 1))  # noqa: E731
    return Rows(read, tuple(rows[0]), class_names, "", "`made up`")


def row(tokens, tags=None):
    return {"tokens": tokens, "tags": ["O"] * len(tokens) if tags is None else tags}


def encoded(rows, words, length=32, labelled=True, class_names=(), **keys):
    data = TaggingData(path="-", **keys)
    found = table(rows, **{"tags": class_names} if class_names else {})
    return tagging.encode(found, tagging.reader.resolve_columns(data, found, labelled), words, data, length)


def settled(train, validation=None, config=None, fixed=False, **keys):
    held = {} if validation is None else {"validation": validation}
    return tagging.resolve_labels(
        TaggingData(path="-", **keys), {"tags": "tags"}, train, held, config or BertConfig(), fixed=fixed
    )


def mistake(*args, **keys):
    with pytest.raises(UserError) as caught:
        settled(*args, **keys)
    return caught.value


def drawn(number, seed=0):
    """Rows of 0 to 60 words."""
    draw = random.Random(seed)
    return [row([draw.choice(PLAIN) for _ in range(draw.choice((0, 1, 7, 60)))]) for _ in range(number)]


# --- rows -> windows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "stride"), [(200, None), (16, None), (16, 0), (13, 9), (5, 1)])
def test_every_word_is_labelled_once_at_its_first_token_and_nothing_is_lost(words, length, stride):
    rows = drawn(8)
    part = encoded(rows, words, length, stride=stride)
    space = " " if isinstance(words.backend_tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel) else ""
    special = words("a", return_special_tokens_mask=True)["special_tokens_mask"]
    before, after = special.index(0), special[::-1].index(0)
    assert sum(special) == before + after
    for number, each in enumerate(rows):
        pieces = words([space + word for word in each["tokens"]], add_special_tokens=False)["input_ids"]
        assert part.lengths[number] == sum(map(len, pieces)) + before + after
        assert part.cut[number] == 0
        labelled, seen = [], []
        for window in (w for w, of in enumerate(part.row) if of == number):
            ids, places = part.inputs["input_ids"][window].tolist(), part.inputs[tagging.WORD][window].tolist()
            assert len(ids) == len(places) <= length
            assert ids[:before] + ids[len(ids) - after :] == [
                token for token, own in zip(words("a")["input_ids"], special, strict=True) if own
            ]
            labelled += [(word, ids[place]) for place, word in enumerate(places) if word >= 0]
            seen.append(ids[before : len(ids) - after])
        assert labelled == [(word, piece[0]) for word, piece in enumerate(pieces)]
        shared = stride if stride is not None else length // 4
        whole = seen[0] + [token for ids in seen[1:] for token in ids[shared:]]
        assert whole == [token for piece in pieces for token in piece] or not pieces


def test_tokens_are_those_of_upstream_for_lists_of_words(bert):
    for words in (bert, byte_bpe(prefix=True)):
        rows = [each for each in drawn(8) if each["tokens"]]
        part = encoded(rows, words, 500)
        theirs = words([each["tokens"] for each in rows], is_split_into_words=True)
        for number in range(len(rows)):
            assert part.inputs["input_ids"][number].tolist() == theirs["input_ids"][number]
            of = theirs.word_ids(number)
            first = [-1 if w is None or w in of[:i] else w for i, w in enumerate(of)]
            assert part.inputs[tagging.WORD][number].tolist() == first
        assert set(part.inputs) - {tagging.WORD} == set(theirs) - {"attention_mask"}


def test_a_word_of_byte_level_bpe_has_the_blank_before_it():
    """Without, every word would read as the inside of another; RoBERTa's tokenizer refuses lists of words."""
    plain, prefixed = byte_bpe(), byte_bpe()
    prefixed.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert plain("saw")["input_ids"] != prefixed("saw")["input_ids"]
    rows = [row(PLAIN)]
    assert [encoded(rows, w, 500).inputs["input_ids"].values.tolist() for w in (plain, prefixed)] == [
        prefixed(PLAIN, is_split_into_words=True)["input_ids"]
    ] * 2


@pytest.mark.parametrize(("size", "room", "stride"), [(1, 4, 1), (50, 10, 3), (51, 10, 4), (200, 30, 20), (30, 10, 0)])
def test_a_token_belongs_to_the_window_where_it_is_farthest_from_an_edge(size, room, stride):
    found = list(tagging.windows(size, room, stride))
    owner = {place: k for k, (_, _, first, behind) in enumerate(found) for place in range(first, behind)}
    assert sorted(owner) == list(range(size))
    assert sum(behind - first for _, _, first, behind in found) == size
    for place, chosen in owner.items():

        def distance(begin, stop, at=place):
            left = at - begin if begin else size  # where the row begins and ends nothing is cut off
            right = stop - 1 - at if stop < size else size
            return min(left, right)

        inside = {k: distance(b, s) for k, (b, s, _, _) in enumerate(found) if b <= place < s}
        assert inside[chosen] == max(inside.values())


def test_words_without_a_token_keep_their_place_and_count_as_outside(bert):
    part = encoded([row(["Zoë", NOTHING, "saw"], ["B-PER", "I-PER", "O"])], bert)
    assert [w for w in part.inputs[tagging.WORD][0] if w >= 0] == [0, 2]
    known = settled(part)
    examples = tagging.examples(part, known, evaluation=True)
    right = np.array([[known.names.index("B-PER") if w == 0 else 0 for w in part.inputs[tagging.WORD][0]]])
    assert tagging.predictions_and_references(right, examples) == (
        [["B-PER", "O", "O"]],
        [["B-PER", "I-PER", "O"]],
    )
    assert tagging.metrics(right, examples)["accuracy"] == pytest.approx(2 / 3)
    alone = encoded([row([NOTHING], ["O"]), row(["saw"], ["B-X"])], bert)
    assert alone.inputs[tagging.WORD][0].max() == -1
    assert alone.empty == []


def test_empty_rows(words):
    part = encoded([row([]), row(["saw"], ["B-X"]), row(["some"]), row([])], words)
    assert part.empty == [0, 3]
    assert part.row == [0, 1, 2, 3]
    assert len(part.inputs["input_ids"][0]) > 0
    examples = tagging.examples(part, settled(part), evaluation=True)
    kept = np.zeros((4, 10))
    assert tagging.metrics(kept, examples)["accuracy"] == 0.5


def test_equal_texts_have_equal_keys(bert):
    keys = encoded([row(["a", "b"]), row(["a", "b"], ["B-X", "O"]), row(["a b"]), row(["b", "a"])], bert).keys
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_a_stride_needs_room(bert):
    with pytest.raises(UserError, match=r"data\.stride = 14 leaves no room in inputs of 16 tokens"):
        encoded([row(["a"])], bert, 16, stride=14)
    assert encoded([row(["a"])], bert, 16, stride=13).row == [0]


@pytest.mark.parametrize(
    ("columns", "keys", "found"),
    [
        (("id", "tokens", "pos_tags", "chunk_tags", "ner_tags"), {}, ("tokens", "ner_tags")),
        (("words", "labels"), {}, ("words", "labels")),
        (("tokens", "words", "upos"), {"tokens_column": "words"}, ("words", "upos")),
        (("tokens", "tags", "column_2"), {"tags_column": "column_2"}, ("tokens", "column_2")),
    ],
)
def test_columns_are_found_by_name(columns, keys, found):
    rows = table([dict.fromkeys(columns, ())])
    assert tuple(tagging.reader.resolve_columns(TaggingData(path="-", **keys), rows).values()) == found
    assert tagging.reader.resolve_columns(TaggingData(path="-", **keys), rows, labelled=False) == {"tokens": found[0]}


@pytest.mark.parametrize(
    ("columns", "keys", "message", "key"),
    [
        (("text", "tags"), {}, "no column `tokens`", "data.tokens_column"),
        (("tokens", "classes"), {}, "no column `ner_tags`", "data.tags_column"),
        (("tokens", "tags"), {"tags_column": "ner"}, "no column `ner`", "data.tags_column"),
        (("tokens", "tags"), {"tokens_column": "sentence"}, "no column `sentence`", "data.tokens_column"),
    ],
)
def test_columns_that_are_missing(columns, keys, message, key):
    with pytest.raises(UserError) as caught:
        tagging.reader.resolve_columns(TaggingData(path="-", **keys), table([dict.fromkeys(columns, ())]))
    assert message in caught.value.message
    assert f"set {key} to one of: {', '.join(columns)}" == caught.value.hint


@pytest.mark.parametrize(
    ("tokens", "tags", "words_read", "tags_read"),
    [
        ('["New York", "is"]', '["B-LOC", "O"]', ["New York", "is"], ["B-LOC", "O"]),
        ("York is big", "B-LOC O  O", ["York", "is", "big"], ["B-LOC", "O", "O"]),
        ('["a", "b"]', "[0, 1]", ["a", "b"], [0, 1]),
        ("[1] [ b ] c", "O O O O O", ["[1]", "[", "b", "]", "c"], ["O"] * 5),
        ("[ b ]", "O O O", ["[", "b", "]"], ["O"] * 3),
        ("[1]", "O", ["[1]"], ["O"]),
        ("[]", "[]", [], []),
        ("", "", [], []),
        ("['a', \"b's\"]", "['O', 'B-X']", ["a", "b's"], ["O", "B-X"]),  # as pandas writes it
        ("['a' \"b's\"\n 'c']", "[0 1\n 2]", ["a", "b's", "c"], [0, 1, 2]),  # as numpy does
        (["a"], ["O"], ["a"], ["O"]),
    ],
)
def test_lists_in_cells_of_a_csv(bert, tokens, tags, words_read, tags_read):
    part = encoded([{"tokens": tokens, "tags": tags}], bert)
    assert part.targets == [tags_read]
    asked = encoded([{"tokens": tokens}], bert, labelled=False)
    assert [asked.targets[0].text[begin:end] for begin, end in asked.targets[0].spans] == words_read


@pytest.mark.parametrize(
    ("tokens", "tags", "said"),
    [
        (["a", "b"], ["O"], "2 words in `tokens` and 1 tags in `tags`"),
        (["a", 5], ["O", "O"], "word 2 of `tokens` is 5, and not text"),
        (["a", None], ["O", "O"], "word 2 of `tokens` is None, and not text"),
        (None, ["O"], "`tokens` holds NoneType, where a list is expected"),
        (["a"], {"a": 1}, "`tags` holds dict, where a list is expected"),
        (["a\ud83d"], ["O"], "half a character"),
        ("['a', ...]", "O O", "word 2 of `tokens` is Ellipsis, and not text"),
        ('["a" "b"]', "O", "2 words in `tokens` and 1 tags in `tags`"),
        ("a b", "[0 ... 1]", "`tags` begins and ends like a list but cannot be read as one: [0 ... 1]"),
    ],
)
def test_rows_that_cannot_be_read(bert, tokens, tags, said):
    with pytest.raises(UserError) as caught:
        encoded([row(["fine"]), {"tokens": tokens, "tags": tags}], bert)
    assert caught.value.message == "`made up`: 1 row that cannot be read"
    assert caught.value.details[0].startswith("row 2: ")
    assert said in caught.value.details[0]


def test_a_row_without_the_column(bert):
    with pytest.raises(UserError, match="row 2: no `tags`; the row has tokens"):
        encoded([row(["fine"]), {"tokens": ["a"]}], bert)


def test_a_tokenizer_of_ones_own_learns_from_words():
    columns = {"tokens": "tokens", "tags": "tags"}
    assert list(tagging.reader.texts(row(["a", "b"]), columns)) == ["a b"]
    assert list(tagging.reader.texts({"tokens": '["a", "b"]'}, columns)) == ["a b"]
    assert list(tagging.reader.texts({"tokens": [5]}, columns)) == []  # encode says where


# --- what the tags mean -----------------------------------------------------------------------------------------------


def test_the_names_are_those_that_occur_behind_o(bert):
    part = encoded([row(["a", "b", "c"], ["I-X", "O", "B-X"])], bert)
    config = BertConfig()
    known = settled(part, config=config)
    assert known.names == ("O", "B-X", "I-X")
    assert (config.num_labels, config.id2label[2], config.label2id["B-X"]) == (3, "I-X", 1)
    labels = [label for label in part.inputs["labels"][0].tolist() if label != -100]
    assert labels == [2, 0, 1]
    assert [tags.tolist() for tags in part.targets] == [[2, 0, 1]]
    read = tagging.label_spec_from_config(config, {}, TaggingData(path="-"), bert)
    assert (read.names, read.kinds) == (known.names, known.kinds)
    numbers = encoded([row(["a", "b", "c"], [10, 2, 0])], bert)
    assert settled(numbers).names == ("0", "2", "10")


def test_labels_are_the_tags_of_the_words_in_every_window(bert):
    draw = random.Random(2)
    rows = [row([*each["tokens"], NOTHING, "saw"]) for each in drawn(8)]
    for each in rows:
        each["tags"] = [draw.choice(("O", "B-X", "I-X")) for _ in each["tokens"]]
    part = encoded(rows, bert, 16)
    names = settled(part).names
    assert len(part.row) > 2 * len(rows)
    for window, number in enumerate(part.row):
        pairs = zip(part.inputs[tagging.WORD][window].tolist(), part.inputs["labels"][window].tolist(), strict=True)
        for word, label in pairs:
            assert label == (-100 if word < 0 else names.index(rows[number]["tags"][word]))


def test_numbers_stand_for_the_hubs_names_or_the_recipes(bert):
    hub = ("O", "B-X", "I-X")
    part = encoded([row(["a", "b"], [1, 0])], bert, class_names=hub)
    assert settled(part).names == hub
    assert part.targets[0].tolist() == [1, 0]
    turned = encoded([row(["a", "b"], [1, 0])], bert, class_names=hub)
    assert settled(turned, label_names=hub[::-1]).names == hub[::-1]
    assert turned.targets[0].tolist() == [1, 2]
    local = encoded([row(["a", "b", "c"], [1, 0, "I-X"])], bert)
    assert settled(local, label_names=hub).names == hub
    assert local.targets[0].tolist() == [1, 0, 2]


def test_a_tagger_of_the_same_names_keeps_their_order(bert):
    config = BertConfig(id2label={0: "B-X", 1: "O", 2: "I-X"})
    part = encoded([row(["a", "b", "c"], ["O", "B-X", "I-X"])], bert)
    assert settled(part, config=config).names == ("B-X", "O", "I-X")
    assert part.targets[0].tolist() == [1, 0, 2]
    other = BertConfig(id2label={0: "B-Y", 1: "O"})
    again = encoded([row(["a", "b", "c"], ["O", "B-X", "I-X"])], bert)
    assert settled(again, config=other).names == ("O", "B-X", "I-X")


def test_a_finished_model_keeps_what_it_knows(bert):
    config = BertConfig(id2label={0: "O", 1: "B-X", 2: "B-Y"})
    part = encoded([row(["a", "b"], ["B-X", "O"])], bert)
    assert settled(None, part, config=config, fixed=True).names == ("O", "B-X", "B-Y")
    assert part.targets[0].tolist() == [1, 0]
    strange = encoded([row(["a", "b"], ["B-Z", "O"])], bert)
    known = settled(None, strange, config=config, fixed=True)
    assert (known.names, known.unknown) == (("O", "B-X", "B-Y"), ("B-Z",))
    assert strange.warnings == [
        "words of 1 row have a tag that the model does not know (B-Z) and count as wrong, such as in row 1"
    ]
    other = encoded([row(["a", "b"], ["N", "V"])], bert)
    found = mistake(None, other, config=config, fixed=True)
    assert found.message == "`made up`: every tag is one that the model does not know: N, V"
    with pytest.raises(UserError, match="the model has 2 tags and the data 3"):
        numbers = encoded([row(["a"], [0])], bert, class_names=("O", "B-X", "I-X"))
        settled(None, numbers, config=BertConfig(num_labels=2), fixed=True)


@pytest.mark.parametrize(
    ("tag", "class_names", "said"),
    [
        (1.5, (), "row 2: word 2: tag 1.5 is not a whole number"),
        (None, (), "row 2: word 2: no tag"),
        (float("nan"), (), "row 2: word 2: no tag"),
        ("", (), "row 2: word 2: no tag"),
        (["O"], (), "row 2: word 2: tag ['O'] is a list"),
        (-1, (), "row 2: word 2: tag -1 is out of range"),
        (3, ("O", "B-X", "I-X"), "row 2: word 2: tag 3 is out of range 0 to 2"),
        (-1, ("O", "B-X", "I-X"), "row 2: word 2: tag -1 is out of range 0 to 2"),
        ("B-Z", ("O", "B-X", "I-X"), 'row 2: word 2: tag "B-Z", which is not in the names of the column'),
    ],
)
def test_tags_that_are_none(bert, tag, class_names, said):
    first = [0, 1] if class_names else ["O", "B-X"]
    part = encoded([row(["a", "b"], first), row(["a", "b"], [first[0], tag])], bert, class_names=class_names)
    found = mistake(part)
    assert found.message == "`made up`: 1 row whose tags cannot be used"
    assert found.details[0].startswith(said)


def test_a_tag_that_only_validation_has_is_reported_and_counted_wrong(bert):
    train = encoded([row(["a", "b"], ["O", "B-X"])], bert)
    held = encoded([row(["a"], ["O"]), row(["a", "b"], ["B-X", "B-Y"])], bert)
    known = settled(train, held)
    assert (known.names, known.kinds, known.unknown) == (("O", "B-X"), ("X",), ("B-Y",))
    assert held.warnings == [
        "words of 1 row have a tag that no row of the training data has (B-Y) and count as wrong, such as in row 2"
    ]
    assert train.warnings == []
    assert [label for label in held.inputs["labels"][1].tolist() if label != -100] == [1]
    assert tagging.label_counts(held, known) == {"X": 1, "Y": 1}
    examples = tagging.examples(held, known, evaluation=True)
    found = kept(examples, bert, lambda number, word: (0, 1)[number])
    assert tagging.predictions_and_references(found, examples) == (
        [["O"], ["B-X", "B-X"]],
        [["O"], ["B-X", "B-Y"]],
    )
    scores = tagging.metrics(found, examples)
    assert (scores["accuracy"], scores["precision"], scores["recall"]) == (pytest.approx(2 / 3), 0.5, 0.5)
    train = encoded([row(["a", "b"], ["O", "B-X"])], bert)
    held = encoded([row(["a", "b"], ["B-X", "B-Y"])], bert)
    assert settled(train, held, label_names=["O", "B-X", "B-Y"]).names[2] == "B-Y"


def test_a_word_whose_tag_is_minus_100_is_neither_learned_nor_counted(bert):
    part = encoded([row(["a", "b", "c"], [1, -100, 0]), row(["a", "b"], [0, 0])], bert, class_names=("O", "B-X"))
    known = settled(part)
    assert known.names == ("O", "B-X")
    assert [label for label in part.inputs["labels"][0].tolist() if label != -100] == [1, 0]
    assert tagging.label_counts(part, known) == {"X": 1}
    examples = tagging.examples(part, known, evaluation=True)
    found = kept(examples, bert, lambda number, word: 1)
    assert tagging.predictions_and_references(found, examples) == (
        [["B-X", "B-X"], ["B-X", "B-X"]],
        [["B-X", "O"], ["O", "O"]],
    )
    assert tagging.metrics(found, examples)["accuracy"] == 0.25
    names = encoded([row(["a", "b", "c"], ["N", "-100", "V"])], bert)
    assert settled(names).names == ("N", "V")
    whole = encoded([row(["a", "b"], [1.0, "0.0"])], bert)  # as pandas writes whole numbers
    assert settled(whole).names == ("0", "1")


def test_nothing_to_learn(bert):
    assert "every word has the tag O" in mistake(encoded([row(["a", "b"])], bert)).message
    assert "no row has a tag" in mistake(encoded([row([])], bert)).message
    assert "holds a name twice" in mistake(encoded([row(["a"])], bert), label_names=["O", "O"]).message


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        (("O", "B-PER", "I-PER", "B-LOC"), ("LOC", "PER")),
        (("O", "U-PER", "B-PER", "I-PER", "L-PER"), ("PER",)),
        (("B", "M", "E", "S"), ("_",)),
        (("O", "B", "I"), ("_",)),
        (("O", "B-event-sport", "I-event-sport"), ("event-sport",)),
        (("NOUN", "VERB", "X"), ()),
        (("S", "V", "NP", "O"), ()),  # a letter of a scheme among tags of none
        (("O", "PER", "LOC"), ()),
        (("0", "1"), ()),
    ],
)
def test_which_tags_mark_entities(names, kinds):
    assert tagging.kinds_of(names) == kinds
    found = tagging.metric_names(tagging.TagSpec(names, kinds))
    assert found == (
        ("precision", "recall", "f1", "accuracy", *(f"f1_{kind}" for kind in kinds))
        if kinds
        else ("accuracy", "f1_macro")
    )


def test_the_balance_is_in_rows(bert):
    rows = [row(["a", "b", "c"], ["B-X", "B-X", "O"]), row(["a", "b"], ["I-X", "B-Y"]), row(["a"], ["O"])]
    part = encoded(rows, bert)
    known = settled(part, label_names=["O", "B-X", "I-X", "B-Y", "B-Z"])
    assert tagging.label_counts(part, known) == {"X": 2, "Y": 1, "Z": 0}
    parts_of_speech = encoded([row(["a", "b"], ["N", "N"]), row(["a", "b"], ["N", "V"])], bert)
    assert tagging.label_counts(parts_of_speech, settled(parts_of_speech)) == {"N": 2, "V": 1}


# --- loss and metrics -------------------------------------------------------------------------------------------------


def test_losses_are_transformers_own():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForTokenClassification(BertConfig(vocab_size=50, num_labels=5, **shape)).eval()
    ids, labels = torch.randint(0, 50, (6, 20)), torch.randint(0, 5, (6, 20))
    labels[torch.rand(6, 20) < 0.3] = -100
    outputs = model(ids, labels=labels)
    found = tagging.losses(outputs, {"labels": labels}, None)
    assert found.shape == (6, 20)
    assert (found[labels == -100] == 0).all()
    assert (found.sum() / (labels != -100).sum()).item() == pytest.approx(outputs.loss.item(), rel=1e-6)
    smooth = tagging.losses(outputs, {"labels": labels}, None, training=True, label_smoothing=0.1)
    uniform = -outputs.logits.log_softmax(-1).mean(-1)
    torch.testing.assert_close(smooth, torch.where(labels == -100, 0, 0.9 * found + 0.1 * uniform))
    assert tagging.losses(outputs, {"labels": labels}, None, label_smoothing=0.1).equal(found)


def kept(part, bert, tag_of, size=3):
    """What evaluation keeps if the model gives the tag `tag_of(row, word)` to each word and tag 1 to all else.

    Batches of unlike widths are padded on the right with -100, as Trainer does.
    """
    collate = tagging.collator(bert, None, 1)
    found = []
    for begin in range(0, len(part), size):
        batch = collate([part[i] for i in range(begin, min(begin + size, len(part)))])
        tags = torch.ones_like(batch["input_ids"])
        for b, index in enumerate(batch["index"].tolist()):
            for t, word in enumerate(batch[tagging.WORD][b].tolist()):
                if word >= 0:
                    tags[b, t] = tag_of(int(part.row[index]), word)
        logits = torch.nn.functional.one_hot(tags, len(part.extra.names)).float()
        found.append(
            tagging.preprocess_logits_for_metrics(None, SimpleNamespace(logits=logits), batch, part.extra).numpy()
        )
    width = max(each.shape[1] for each in found)
    return np.concatenate([np.pad(each, ((0, 0), (0, width - each.shape[1])), constant_values=-100) for each in found])


@pytest.mark.parametrize("size", [1, 3, 64])
def test_metrics_of_windows_are_those_of_rows(bert, size):
    draw = random.Random(1)
    names = ("O", "B-X", "I-X", "B-Y", "I-Y")
    rows = [row(each["tokens"], [draw.choice(names) for _ in each["tokens"]]) for each in drawn(12)]
    part = encoded(rows, bert, 16)
    known = settled(part, label_names=names)
    examples = tagging.examples(part, known, evaluation=True)
    said = [[draw.choice(names) for _ in each["tokens"]] for each in rows]
    found = kept(examples, bert, lambda number, word: names.index(said[number][word]), size)
    assert tagging.predictions_and_references(found, examples) == (said, [each["tags"] for each in rows])
    scores = tagging.metrics(found, examples)
    right = sum(a == b for s, each in zip(said, rows, strict=True) for a, b in zip(s, each["tags"], strict=True))
    assert scores["accuracy"] == pytest.approx(right / sum(len(each["tags"]) for each in rows))
    assert {k: v for k, v in scores.items() if k != "accuracy"} == measures.entity_scores(
        said, [each["tags"] for each in rows]
    )
    assert set(scores) == set(tagging.metric_names(known))


def test_a_type_that_does_not_occur_has_a_score_all_the_same(bert):
    part = encoded([row(["a", "b"], ["O", "B-X"])], bert)
    known = settled(part, label_names=["O", "B-X", "B-Y"])
    examples = tagging.examples(part, known, evaluation=True)
    assert tagging.metrics(kept(examples, bert, lambda row, word: word), examples) == {
        **dict.fromkeys(("precision", "recall", "f1", "accuracy", "f1_X"), 1.0),
        "f1_Y": 0.0,
    }


def test_parts_of_speech_have_accuracy_and_macro_f1(bert):
    rows = [row(["a", "b", NOTHING], ["N", "V", "N"]), row(["a", "b"], ["N", "A"])]
    part = encoded(rows, bert)
    known = settled(part)
    assert known.names == ("A", "N", "V")
    examples = tagging.examples(part, known, evaluation=True)
    scores = tagging.metrics(kept(examples, bert, lambda row, word: (1, 2)[word]), examples)
    assert scores == {"accuracy": pytest.approx(3 / 5), "f1_macro": pytest.approx((0 + 4 / 5 + 2 / 3) / 3)}


SCHEMES = {
    "IOB": ("O", "B-X", "I-X", "B-Y", "I-Y"),
    "IOBES": ("O", "B-X", "I-X", "E-X", "S-X", "B-Y-Z", "I-Y-Z", "E-Y-Z", "S-Y-Z"),
    "letters": ("O", "B", "I", "E", "S"),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_entities_are_those_of_seqeval(scheme):
    """Valid or not: tags are drawn at random, so that every pair of tags occurs."""
    draw = random.Random(0)
    for _ in range(2000):
        tags = draw.choices(SCHEMES[scheme], k=draw.randint(0, 9))
        assert measures.entities(tags) == seqeval.metrics.sequence_labeling.get_entities(list(tags))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scores_are_those_of_seqeval(scheme):
    draw = random.Random(1)
    for _ in range(200):
        lengths = [draw.randint(1, 6) for _ in range(draw.randint(1, 4))]
        said, gold = ([draw.choices(SCHEMES[scheme], k=length) for length in lengths] for _ in range(2))
        found = measures.entity_scores(said, gold)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scores that have nothing to count
            theirs = (
                seqeval.metrics.classification_report(gold, said, output_dict=True)
                if any(map(measures.entities, said + gold))
                else {}
            )
            for name in ("precision", "recall", "f1"):
                score = getattr(seqeval.metrics, f"{name}_score")(gold, said)
                assert found[name] == pytest.approx(float(score))
        for kind in set(theirs) - {"micro avg", "macro avg", "weighted avg"}:
            assert found[f"f1_{kind}"] == pytest.approx(float(theirs[kind]["f1-score"]))


def test_one_text_in_five_schemes():
    schemes = (
        ("I-X", "I-X", "B-X", "O", "I-Y", "I-Y", "I-Y"),  # IOB1: B only where an entity follows one of its type
        ("B-X", "I-X", "B-X", "O", "B-Y", "I-Y", "I-Y"),
        ("B-X", "E-X", "S-X", "O", "B-Y", "I-Y", "E-Y"),
        ("B-X", "E-X", "S-X", "O", "B-Y", "M-Y", "E-Y"),
        ("B-X", "L-X", "U-X", "O", "B-Y", "I-Y", "L-Y"),
    )
    for tags in schemes:
        assert measures.entities(tags) == [("X", 0, 1), ("X", 2, 2), ("Y", 4, 6)]
    assert measures.entities(["NOUN", "MISC", "-", "", "X"]) == []
    assert measures.entities(["B-X", "NOUN", "I-X"]) == [("X", 0, 0), ("X", 2, 2)]


def test_entities_are_found_with_their_type_and_both_ends():
    gold = [["B-X", "I-X", "O"], ["B-Y", "O", "O"]]
    assert measures.entity_scores(gold, gold)["f1"] == 1
    for said in (["B-Y", "I-Y", "O"], ["B-X", "O", "O"], ["B-X", "I-X", "I-X"], ["O", "O", "B-X"]):
        found = measures.entity_scores([said, gold[1]], gold)
        assert (found["precision"], found["recall"], found["f1"]) == (0.5, 0.5, 0.5)
    assert measures.entity_scores([["O"]], [["O"]]) == {"precision": 0, "recall": 0, "f1": 0}
    with pytest.raises(ValueError, match="2 tags are predicted, but the reference has 1"):
        measures.entity_scores([["O", "O"]], [["O"]])


# --- predictions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Zoë saw 12 foxes.", ["Zoë", "saw", "12", "foxes", "."]),
        ("cafe\u0301 e\u0301\u0302te\u0301", ["cafe\u0301", "e\u0301\u0302te\u0301"]),
        ("👍🏽👨‍👩‍👧 🇩🇪🇫🇷 1️⃣❤️", ["👍🏽", "👨‍👩‍👧", "🇩🇪", "🇫🇷", "1️⃣", "❤️"]),
        ("東京へ12日 Tokyo", ["東", "京", "へ", "12", "日", "Tokyo"]),
        ("abcカー", ["abc", "カ", "ー"]),
        ("รักน้ำ", ["รั", "ก", "น้ำ"]),
        ("हिन्दी می\u200cخواهم 한국어", ["हिन्दी", "می\u200cخواهم", "한국어"]),  # noqa: RUF001
        (" \t a\u00a0b\r\n\u3000c ", ["a", "b", "c"]),
        ("don't @you_2", ["don", "'", "t", "@", "you", "_", "2"]),
        ("", []),
        (" \n", []),
    ],
)
def test_a_text_is_cut_into_words(text, found):
    assert [match[0] for match in tagging.reader.WORDS.finditer(text)] == found


class Reader(torch.nn.Module):
    """Tags a token by its id alone: by `tag_of`, with the probability `sure`."""

    def __init__(self, tag_of, number, sure=0.9):
        super().__init__()
        self.tag_of, self.number, self.sure = tag_of, number, sure

    def forward(self, input_ids, attention_mask, **others):
        assert not {"labels", "index", tagging.WORD} & set(others)
        tags = input_ids.clone().apply_(lambda token: self.tag_of.get(token, 0))
        right = torch.nn.functional.one_hot(tags, self.number).double()
        return SimpleNamespace(logits=(right * self.sure + (1 - right) * (1 - self.sure) / (self.number - 1)).log())


def predicted(rows, words, names, tag_of_word, size=2, **keys):
    part = encoded(rows, words, labelled=False, **keys)
    known = tagging.TagSpec(names, tagging.kinds_of(names))
    tag_of = {words(word, add_special_tokens=False)["input_ids"][0]: n for word, n in tag_of_word.items()}
    model = Reader(tag_of, len(names))
    examples = tagging.examples(part, known, evaluation=True)
    collate, found = tagging.collator(words, None, 1), []
    for begin in range(0, len(examples), size):
        batch = collate([examples[i] for i in range(begin, min(begin + size, len(examples)))])
        assert "labels" not in batch
        assert "labels" not in models_own(batch)
        found.append(tagging.forward_for_predict(model, batch, known).numpy())
    said = dict(tagging.postprocess(np.concatenate(found), examples, known))
    return [said[number] for number in range(len(rows))]


NAMES = ("O", "B-PER", "I-PER")


@pytest.mark.parametrize("size", [1, 2, 64])
def test_entities_stand_where_they_say(bert, size):
    texts = ["Zoë  Müller saw 👍🏽!", "", "some foxes saw  Zoë", NOTHING, "in " * 50 + "Zoë"]
    said = predicted([{"text": text} for text in texts], bert, NAMES, {"Zoë": 1, "Müller": 2}, size)
    assert said[0] == {
        "entities": [{"text": "Zoë  Müller", "label": "PER", "score": 0.9, "start": 0, "end": 11}],
        "tokens": ["Zoë", "Müller", "saw", "👍🏽", "!"],
        "tags": ["B-PER", "I-PER", "O", "O", "O"],
    }
    assert said[1] == {"entities": [], "tokens": [], "tags": []}
    assert said[3] == {"entities": [], "tokens": [NOTHING], "tags": ["O"]}
    for text, each in zip(texts, said, strict=True):
        for entity in each["entities"]:
            assert text[entity["start"] : entity["end"]] == entity["text"]
    assert [entity["start"] for entity in said[4]["entities"]] == [150]  # in the last of several windows


def test_places_in_a_list_of_words_are_those_in_the_words_joined_by_blanks(bert):
    said = predicted([{"tokens": ["saw", "👍🏽", "Zoë", "Müller"]}], bert, NAMES, {"Zoë": 1, "Müller": 2})
    assert said == [
        {
            "entities": [{"text": "Zoë Müller", "label": "PER", "score": 0.9, "start": 7, "end": 17}],
            "tags": ["O", "O", "B-PER", "I-PER"],
        }
    ]


def test_tags_that_mark_no_entities(bert):
    names = ("N", "V")
    assert predicted([{"text": f"foxes saw {NOTHING}"}], bert, names, {"saw": 1}) == [
        {"tokens": ["foxes", "saw", NOTHING], "tags": ["N", "V", None]}
    ]


def test_the_score_is_the_mean_of_the_words(bert):
    part = encoded([{"tokens": ["a", "b", "c"]}], bert, labelled=False)
    known = tagging.TagSpec(NAMES, ("PER",))
    examples = tagging.examples(part, known, evaluation=True)
    rows = np.array([[0, 0, 1, 0.9], [0, 1, 2, 0.5], [0, 2, 0, 1.0]])
    assert dict(tagging.postprocess(rows, examples, known))[0]["entities"][0]["score"] == 0.7


# --- through the command ----------------------------------------------------------------------------------------------

RECIPE = """
task = "token-classification"
[model.config]
model_type = "bert"
num_hidden_layers = 1
num_attention_heads = 2
hidden_size = 48
intermediate_size = 96
max_position_embeddings = 32
hidden_dropout_prob = 0.0
attention_probs_dropout_prob = 0.0
[tokenizer]
type = "wordpiece"
vocab_size = 200
[data]
path = "rows.conll"
validation_fraction = 0.2
max_length = 24
[trainer]
num_train_epochs = 4
per_device_train_batch_size = 16
learning_rate = 1e-2
"""


def write(place, number=240):
    """Sentences of 3 to 30 words about foxes called by one or two names, and where they live."""
    draw = random.Random(0)
    lines = []
    for _ in range(number):
        for _ in range(draw.randint(1, 6)):
            lines += [f"{draw.choice(('Rex', 'Ann', 'Bob'))} N B-WHO"]
            lines += ["Fox N I-WHO"] * draw.randint(0, 1)
            lines += ["saw V O", "the D O", f"{draw.choice(('wood', 'yard'))} N B-WHERE"]
            lines += ["👍🏽 X O"] * draw.randint(0, 1)
        lines.append("")
    (place / "rows.conll").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with data, a recipe and a finished run of it."""
    from typer.testing import CliRunner

    from llmkit.cli import app

    folder = tmp_path_factory.mktemp("run")
    write(folder)
    (folder / "recipe.toml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner().invoke(app, ("finetune", "recipe.toml", "--output-dir", "run"), catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture
def place(run, monkeypatch):
    monkeypatch.chdir(run)
    return run


def said_of(done):
    assert done.exit_code == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_model_learns_to_tag(place, llmkit):
    record = json.loads((place / "run" / "run.json").read_text())
    assert record["metrics"]["eval_f1"] > 0.95
    assert record["metrics"]["eval_f1_WHERE"] > 0.95
    assert record["data"]["train"]["truncated_rows"] == 0
    assert record["data"]["train"]["examples"] > record["data"]["train"]["rows"]
    assert record["columns"] == {"tokens": "tokens", "tags": "tags"}

    text = "Bob  Fox saw the yard👍🏽Ann saw the wood"
    (said,) = said_of(llmkit("predict", "run", text))
    assert [(entity["text"], entity["label"]) for entity in said["entities"]] == [
        ("Bob  Fox", "WHO"),
        ("yard", "WHERE"),
        ("Ann", "WHO"),
        ("wood", "WHERE"),
    ]
    for entity in said["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]
    assert said["tokens"] == ["Bob", "Fox", "saw", "the", "yard", "👍🏽", "Ann", "saw", "the", "wood"]
    assert said["tags"][:2] == ["B-WHO", "I-WHO"]


def test_nothing_hangs_on_the_size_of_batches(place, llmkit):
    figures = []
    for size in (1, 7, 64):
        done = llmkit("evaluate", "run", f"trainer.per_device_eval_batch_size={size}")
        (found,) = [json.loads(done.stdout)]
        figures.append({key: value for key, value in found.items() if key != "eval_loss"})
        assert found["eval_loss"] == pytest.approx(
            json.loads((place / "run" / "run.json").read_text())["metrics"]["eval_loss"], rel=1e-4
        )
    assert figures[0] == figures[1] == figures[2]
    texts = ["Rex saw the wood", "Ann Fox", "the yard saw Bob " * 12, "👍🏽", "", "wood"]
    together = said_of(llmkit("predict", "run", *texts))
    alone = [said for text in texts for said in said_of(llmkit("predict", "run", text))]
    for one, other in zip(alone, together, strict=True):
        assert [{**e, "score": 0} for e in one["entities"]] == [{**e, "score": 0} for e in other["entities"]]
        assert [e["score"] for e in one["entities"]] == pytest.approx([e["score"] for e in other["entities"]], abs=2e-6)
        assert (one["tokens"], one["tags"]) == (other["tokens"], other["tags"])


def test_rows_of_every_kind_of_file_are_tagged(place, llmkit, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 7, "tokens": ["Bob", "saw", "the", "yard"]}\n')
    (tmp_path / "a.csv").write_text("tokens\nBob saw the yard\n")
    (tmp_path / "a.conll").write_text("Bob\nsaw\nthe\nyard\n")
    (tmp_path / "b.csv").write_text("text\nBob saw the yard\n")
    (tmp_path / "a.txt").write_text("Bob saw the yard\n")
    found = {
        name: said_of(llmkit("predict", "run", "--input", str(tmp_path / name)))
        for name in ("a.jsonl", "a.csv", "a.conll", "b.csv", "a.txt")
    }
    tags = ["B-WHO", "O", "O", "B-WHERE"]
    assert [said["tags"] for (said,) in found.values()] == [tags] * 5
    assert [said["entities"] for (said,) in found.values()] == [found["a.txt"][0]["entities"]] * 5
    assert found["a.txt"][0]["tokens"] == ["Bob", "saw", "the", "yard"]
    done = llmkit("predict", "run", "--input", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out.jsonl"))
    assert done.exit_code == 0
    written = json.loads((tmp_path / "out.jsonl").read_text())
    assert written == {"id": 7, "tokens": ["Bob", "saw", "the", "yard"], **found["a.jsonl"][0]}
    (tmp_path / "c.csv").write_text("sentence\nBob\n")
    done = llmkit("predict", "run", "--input", str(tmp_path / "c.csv"))
    assert done.exit_code == 2
    assert "no column `tokens`" in done.stderr


def test_another_column_and_an_adapter(place, llmkit):
    options = ("data.tags_column=column_2", "model.name=run", "lora.r=4", "trainer.num_train_epochs=10")
    done = llmkit("finetune", "recipe.toml", "--output-dir", "adapter", "tokenizer.type=", *options)
    assert done.exit_code == 0, done.stderr
    metrics = json.loads((place / "adapter" / "run.json").read_text())["metrics"]
    assert metrics["eval_accuracy"] > 0.95
    assert metrics["eval_f1_macro"] > 0.95
    assert (place / "adapter" / "adapter_model.safetensors").exists()
    (said,) = said_of(llmkit("predict", "adapter", "Rex saw the wood"))
    assert said == {
        "tokens": ["Rex", "saw", "the", "wood"],
        "tags": ["N", "V", "D", "N"],
    }
    found = json.loads(llmkit("evaluate", "adapter").stdout)
    assert found["eval_accuracy"] == metrics["eval_accuracy"]


def test_bad_rows_are_named_by_file_and_line(place, llmkit, tmp_path):
    (tmp_path / "bad.jsonl").write_text(
        "".join(json.dumps(row(["a", "b"], tags)) + "\n" for tags in (["O", "B-X"], *[["O"]] * 4, *[["O", "B-X"]] * 15))
    )
    done = llmkit("finetune", "recipe.toml", f"data.path={tmp_path / 'bad.jsonl'}", "--output-dir", "bad")
    assert done.exit_code == 2
    assert "4 of 20 rows cannot be used: words and tags differ in number" in done.stderr
    assert f"`{tmp_path / 'bad.jsonl'}`, line 2: 2 words in `tokens` and 1 tags in `tags`" in done.stderr
    assert "data.max_skipped_fraction = 0.2" in done.stderr
    assert not (place / "bad" / "run.json").exists()


def test_a_run_is_evaluated_on_spans_and_on_words_of_other_tools(place, llmkit, tmp_path):
    """The model tags `Rex` and `wood`; a type that it does not know counts as wrong, and is said."""
    text = "Rex saw the wood"
    spans = [[0, 3, "WHO"], [12, 16, "WHERE"]]
    rows = [{"text": text, "label": spans}, {"text": text, "label": [*spans, [4, 7, "WHAT"]]}]
    (tmp_path / "spans.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    done = llmkit("evaluate", "run", f"data.path={tmp_path / 'spans.jsonl'}", "data.validation_fraction=")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["eval_precision"], found["eval_recall"], found["eval_accuracy"]) == (1.0, 0.8, 0.875)
    assert "words of 1 row have a tag that the model does not know (B-WHAT) and count as wrong" in done.stderr
    words = [(n, *pair) for n in range(2) for pair in zip(text.split(), ["B-WHO", "O", "O", "B-WHERE"], strict=True)]
    (tmp_path / "words.csv").write_text("sent_id,word,tag\n" + "".join(f"{n},{w},{t}\n" for n, w, t in words))
    done = llmkit("evaluate", "run", f"data.path={tmp_path / 'words.csv'}", "data.validation_fraction=")
    assert json.loads(done.stdout)["eval_f1"] == 1.0
