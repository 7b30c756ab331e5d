"""Multiple choice: the shapes that data sets have, any number of choices a row, and clear words for bad answers."""

import csv
import json
from types import SimpleNamespace

import forks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import MASKED, REST, losses
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForMultipleChoice,
    BertConfig,
    BertForMultipleChoice,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMultipleChoice,
    XLNetConfig,
    XLNetForMultipleChoice,
)

from llmkit.data.rows import choices as reader
from llmkit.data.rows.batches import models_own
from llmkit.data.rows.table import Rows
from llmkit.errors import UserError
from llmkit.recipe.data_tables import ChoiceData
from llmkit.tasks import multiple_choice as task

WORDS = [*"abcdefghijklmnopqrstuvwxyz", *(f"w{number}" for number in range(60)), "!", "?"]
DATA = ChoiceData(path="x")


def words(pair="[CLS] $A [SEP] $B:1 [SEP]:1", **options):
    """A tokenizer of whole words; the pair as BERT's, unless said otherwise."""
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names: dict = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, **options)


def table(rows):
    """Rows in memory, which stand in lines 2, 3, ... of `x.csv`."""
    places = [f"`x.csv`, line {number}" for number in range(2, len(rows) + 2)]
    return Rows(lambda: iter(zip(places, rows, strict=True)), tuple(rows[0]), {}, "", "`x.csv`")


def encoded(rows, tokenizer=None, length=64, data=DATA, labelled=True):
    rows = table(rows)
    return task.encode(rows, reader.resolve_columns(data, rows, labelled), tokenizer or words(), data, length)


def pairs(rows, **options):
    """[(what is read first, the choice behind it), ...] of each row, as the tokens say."""
    tokenizer = words()
    part = encoded(rows, tokenizer, **options)
    found = []
    for row in range(len(rows)):
        ids, sizes = part.inputs["input_ids"][row], part.inputs["choices"][row]
        cuts = np.cumsum(sizes[sizes != task.NONE])
        assert cuts[-1] == len(ids)
        texts = [tokenizer.decode(each).split("[SEP]") for each in np.split(ids, cuts)[:-1]]
        assert all(first.startswith("[CLS]") and rest == "" for first, _, rest in texts)
        found.append([(first.removeprefix("[CLS]").strip(), choice.strip()) for first, choice, _ in texts])
    return found


def answers(rows, *others):
    """The labels of these rows, where `others` are further parts of the data."""
    part, rest = encoded(rows), {f"part {number}": encoded(each) for number, each in enumerate(others)}
    task.resolve_labels(DATA, {}, part, rest, BertConfig(), False)
    return [part.labels.tolist(), *(each.labels.tolist() for each in rest.values())] if others else part.labels.tolist()


def refused(rows, *others):
    with pytest.raises(UserError) as caught:
        answers(rows, *others)
    return str(caught.value)


# --- the shapes of data sets ------------------------------------------------------------------------------------------

SWAG = {"video-id": "v", "fold-ind": "1", "startphrase": "a b c", "sent1": "a b", "sent2": "c", "gold-source": "gold"}
SWAG |= {"ending0": "d", "ending1": "e", "ending2": "f", "ending3": "g", "label": 2}
HELLASWAG = {"ind": 4, "activity_label": "x", "ctx_a": "a b", "ctx_b": "c", "ctx": "a b c", "endings": ["d", "e", "f"]}
HELLASWAG |= {"source_id": "y", "split": "train", "split_type": "indomain", "label": "1"}
C3 = {"id": 1, "context": ["a", "b"], "question": "c ?", "choice": ["d", "e", "f"], "answer": "e"}
RACE = {"example_id": "h.txt", "article": "a b", "answer": "C", "question": "c ?", "options": ["d", "e", "f", "g"]}
COPA = {"premise": "a b", "choice1": "d", "choice2": "e", "question": "c", "idx": 0, "label": 0}
ARC = {"id": "q", "question": "a b ?", "choices": {"text": ["d", "e", "f"], "label": ["1", "2", "3"]}, "answerKey": "3"}
OPENBOOK = {"id": "q", "question_stem": "a b", "choices": {"text": ["d", "e"], "label": ["A", "B"]}, "answerKey": "B"}
RAW_ARC = {"question": "a b", "choices": [{"text": "d", "label": "A"}, {"text": "e", "label": "B"}], "answerKey": "B"}
CEVAL = {"id": 0, "question": "a b", "A": "d", "B": "e", "C": "f", "D": "g", "answer": "D"}


@pytest.mark.parametrize(
    ("row", "first", "seconds", "label"),
    [
        (SWAG, "a b", ["c d", "c e", "c f", "c g"], 2),
        ({k: v for k, v in SWAG.items() if not k.startswith("sent")}, "a b c", ["d", "e", "f", "g"], 2),
        (HELLASWAG, "a b", ["c d", "c e", "c f"], 1),
        ({**HELLASWAG, "ctx_b": ""}, "a b", ["d", "e", "f"], 1),
        (C3, "a b c ?", ["d", "e", "f"], 1),
        ({**C3, "context": "a b"}, "a b c ?", ["d", "e", "f"], 1),
        (RACE, "a b c ?", ["d", "e", "f", "g"], 2),
        (COPA, "a b c", ["d", "e"], 0),
        (ARC, "a b ?", ["d", "e", "f"], 2),
        ({"choice2": "e", "choice1": "d", "question": "a b", "label": 1}, "a b", ["d", "e"], 1),
        (OPENBOOK, "a b", ["d", "e"], 1),
        (RAW_ARC, "a b", ["d", "e"], 1),
        (CEVAL, "a b", ["d", "e", "f", "g"], 3),
        # A CSV's cells
        ({**RACE, "options": '["d", "e", "f", "g"]'}, "a b c ?", ["d", "e", "f", "g"], 2),
        ({**ARC, "choices": json.dumps(ARC["choices"])}, "a b ?", ["d", "e", "f"], 2),
        ({**C3, "context": '["a", "b"]'}, "a b c ?", ["d", "e", "f"], 1),
        ({**C3, "context": "[a] b"}, "[UNK] a [UNK] b c ?", ["d", "e", "f"], 1),
        (
            {**RACE, "options": ["1", 2, 3.5, True], "answer": "A"},
            "a b c ?",
            ["[UNK]"] * 2 + ["[UNK] " * 2 + "[UNK]"] + ["[UNK]"],
            0,
        ),
    ],
)
def test_the_shapes_of_data_sets_are_read_as_the_hub_has_them(row, first, seconds, label):
    assert pairs([row]) == [[(first, second) for second in seconds]]
    assert answers([row]) == [label]


def test_explicit_columns_win():
    row = {"context": "a", "question": "b", "story": "c", "ask": "d", "choices": ["e", "f"], "x": "g", "y": "h", "n": 1}
    data = ChoiceData(
        path="x", context_column="story", question_column="ask", choices_column=["x", "y"], answer_column="n"
    )
    assert pairs([row], data=data) == [[("c d", "g"), ("c d", "h")]]
    assert reader.resolve_columns(data, table([row]))["answer"] == "n"
    data = ChoiceData(path="x", context_column="story", choices_column="choices", answer_column="n")
    assert pairs([row], data=data) == [[("c b", "e"), ("c b", "f")]]
    assert "answer" not in reader.resolve_columns(data, table([row]), labelled=False)


@pytest.mark.parametrize(
    ("columns", "keys", "said"),
    [
        ("choices label", {}, "which column is read before the choices?\nhint: set data.context_column"),
        ("context article choices label", {}, "which column is read before the choices?"),
        ("context choices", {}, "which column says which choice is right?\nhint: set data.answer_column"),
        ("context choices label answer", {}, "which column says which choice is right?"),
        ("context label", {}, "holds the choices (or which columns, one for each)?\nhint: set data.choices_column"),
        ("context choices options label", {}, "holds the choices"),
        ("context choice1 choice3 label", {}, "holds the choices"),
        ("context choice2 choice3 label", {}, "holds the choices"),
        ("context choices label", {"choices_column": "x"}, "no column `x`\nhint: set data.choices_column"),
        ("context choices label", {"choices_column": ["context", "x"]}, "no column `x`\nhint: set data.choices_column"),
        ("context choices label", {"context_column": "x"}, "no column `x`\nhint: set data.context_column"),
        ("context choices label", {"answer_column": "x"}, "no column `x`\nhint: set data.answer_column"),
    ],
)
def test_columns_that_are_not_clear_are_asked_for(columns, keys, said):
    with pytest.raises(UserError) as caught:
        reader.resolve_columns(ChoiceData(path="x", **keys), table([dict.fromkeys(columns.split(), "a")]))
    assert said in str(caught.value)
    assert "`x.csv`" in str(caught.value)


def test_the_last_columns_may_be_empty():
    row = {"question": "a", "choice_0": "b", "choice_1": "c", "choice_2": "", "choice_3": None, "label": 1}
    assert pairs([row]) == [[("a", "b"), ("a", "c")]]
    assert pairs([{**row, "choice_1": ""}, {**row, "choice_3": "d"}][1:]) == [
        [("a", each) for each in ("b", "c", "", "d")]
    ]


def test_a_tokenizer_of_ones_own_is_trained_on_all_that_is_read():
    columns = reader.resolve_columns(DATA, table([C3]))
    assert list(reader.texts(C3, columns)) == ["a", "b", "c ?", "d", "e", "f"]
    assert list(
        reader.texts({**ARC, "choices": json.dumps(ARC["choices"])}, reader.resolve_columns(DATA, table([ARC])))
    ) == [*("a b ?", "d", "e", "f")]


# --- answers ----------------------------------------------------------------------------------------------------------


def asked(answer, choices=("d", "e", "f"), **more):
    return {"question": "a", "choices": list(choices), "answer": answer, **more}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0, 2, 1], [0, 2, 1]),
        (["0", "2"], [0, 2]),
        (["0.0", "2.0"], [0, 2]),  # pandas
        (["A", "c", " B "], [0, 2, 1]),
        (["d", "f "], [0, 2]),
    ],
)
def test_an_answer_is_a_number_a_letter_or_the_text(given, expected):
    choices = ("x", "y", "z") if "A" in given else ("d", "e", "f")
    assert answers([asked(answer, choices) for answer in given]) == expected


def test_all_answers_are_read_in_one_way():
    """Texts that look like numbers, where not all answers could be numbers; and the other way round."""
    years = ("3", "1", "7")
    assert answers([asked("7", years), asked("1", years)]) == [2, 1]
    assert answers([asked("0", years), asked("1", years)]) == [0, 1]
    assert answers([asked("1", years)], [asked("7", years)]) == [[1], [2]]
    said = refused([asked("0"), asked("1"), asked("f")])
    assert 'line 4: answer "f" is the text of a choice, where other rows have the number' in said


def test_names_of_the_choices_are_not_numbers():
    named = {"text": ["d", "e", "f"], "label": ["1", "2", "3"]}
    assert answers([asked("1", choices=[]) | {"choices": named}, asked("2") | {"choices": named}]) == [0, 1]
    said = refused([asked("1") | {"choices": named}, asked("0") | {"choices": named}])
    assert '`x.csv`, line 3: answer "0" is not one of its 3 choices' in said
    assert "count from 1" not in said
    said = refused([asked("1") | {"choices": named}, asked("A") | {"choices": named}])
    assert '`x.csv`, line 3: answer "A" is not one of its 3 choices' in said


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([asked(0), asked(3)], "`x.csv`, line 3: answer 3 is out of range 0 to 2"),
        ([asked("A"), asked("D", ("x", "y", "z"))], 'line 3: answer "D" is not one of its 3 choices'),
        ([asked("d"), asked("g")], 'line 3: answer "g" is not one of its 3 choices'),
        ([asked("d"), asked("g" * 50)], f'answer "{"g" * 37}..." is not one'),
        ([asked(0), asked(True)], 'line 3: answer "True" is not one of its 3 choices'),
        ([asked(0), asked(3), asked(3)], "`x.csv`: 2 rows whose answer cannot be used"),
    ],
)
def test_answers_that_are_not_read_as_others_are_are_named(rows, said):
    assert said in refused(rows)


def test_answers_that_count_from_1_are_seen_where_many_show_it():
    counted = [asked(1 + number % 3) for number in range(20)]
    assert answers(counted) == [number % 3 for number in range(20)]
    assert answers(counted, [asked(1)])[1] == [0]
    part, config = encoded(counted), BertConfig()
    task.resolve_labels(DATA, {}, part, {}, config, False)
    alone = encoded([asked(1), asked("2")])
    task.resolve_labels(DATA, {}, None, {"validation": alone}, config, True)
    assert alone.labels.tolist() == [0, 1]


def test_answers_that_seem_to_count_from_1_are_asked_about():
    said = refused([asked(1), asked(3), asked(2)])
    assert said.startswith("error: `x.csv`: it seems that the answers are numbers that count from 1")
    assert "if so, set data.answer_base = 1" in said
    few = encoded([asked(1), asked(3)])
    task.resolve_labels(ChoiceData(path="x", answer_base=1), {}, few, {}, BertConfig(), False)
    assert few.labels.tolist() == [0, 2]
    few = encoded([asked(1), asked(2)])
    task.resolve_labels(ChoiceData(path="x", answer_base=0), {}, few, {}, BertConfig(), False)
    assert few.labels.tolist() == [1, 2]


def test_validation_is_checked_too():
    assert "`x.csv`, line 2: answer 5 is out of range" in refused([asked(0)], [asked(5)])


def test_the_look_at_the_data_counts_right_choices_lengths_and_rows_without_text():
    part = encoded([asked(1), asked(1), asked(0, "de"), asked(0, ["d e f", "d"], question=" ")])
    known = task.resolve_labels(DATA, {}, part, {}, BertConfig(), False)
    assert task.label_counts(part, known) == {"choice 0": 2, "choice 1": 2, "choice 2": 0}
    assert part.lengths == [5, 5, 5, 6]
    assert part.empty == [3]
    assert len(set(part.keys)) == 3


# --- tokens -----------------------------------------------------------------------------------------------------------

LONG = " ".join(f"w{number}" for number in range(40))


def test_the_context_is_cut_from_its_beginning_and_the_choice_is_not():
    row = {"context": LONG, "question": "x y ?", "choices": ["a", "b c d"], "answer": 0}
    part = encoded([row], length=16)
    assert pairs([row], length=16) == [
        [("w31 w32 w33 w34 w35 w36 w37 w38 w39 x y ?", "a"), ("w33 w34 w35 w36 w37 w38 w39 x y ?", "b c d")]
    ]
    assert part.inputs["choices"][0].tolist() == [16, 16]
    assert (part.lengths, part.cut) == ([3 + 43 + 3], [33])
    kinds = part.inputs["token_type_ids"][0]
    assert kinds.tolist() == [0] * 14 + [1] * 2 + [0] * 12 + [1] * 4


def test_a_choice_too_long_by_itself_loses_its_end_and_is_counted():
    row = {"context": "x y", "choices": [LONG, "a"], "answer": 1}
    assert pairs([row], length=10) == [[("", "w0 w1 w2 w3 w4 w5 w6"), ("x y", "a")]]
    part = encoded([row], length=10)
    assert (part.lengths, part.cut) == ([45], [35])
    assert pairs([{**row, "choices": ["w0 w1 w2 w3 w4 w5 w6", "a"]}], length=10)[0][0] == ("", "w0 w1 w2 w3 w4 w5 w6")


@pytest.mark.parametrize("template", ["[CLS] $A [SEP] [SEP] $B [SEP]", "$A [SEP] $B:1 [SEP]:1 [CLS]:2", "$A $B [SEP]"])
def test_special_tokens_stay_wherever_the_tokenizer_puts_them(template):
    tokenizer = words(template)
    special = tokenizer("a", "b", return_attention_mask=False)["input_ids"]
    part = encoded([{"context": LONG, "choices": ["a", LONG], "answer": 0}], tokenizer, length=len(special) + 1)
    first, second = np.split(part.inputs["input_ids"][0], [len(special) + 1])
    as_whole = tokenizer("w38 w39", "a")["input_ids"], tokenizer("", "w0 w1 w2")["input_ids"]
    assert (first.tolist(), second.tolist()) == as_whole


# --- batches ----------------------------------------------------------------------------------------------------------

MIXED = [
    {"context": "a b c d", "choices": ["e", "f g", "h", "i j k"], "answer": 3},
    {"context": "l", "choices": ["m n o", "p"], "answer": 1},
    {"context": "q r", "choices": ["s", "t", "u v w x y z"], "answer": 0},
    {"context": "a", "choices": ["b", "", "c", "d", "e"], "answer": 2},
]


def parts(rows=MIXED, tokenizer=None, evaluation=False):
    tokenizer = tokenizer or words()
    part = encoded(rows, tokenizer)
    known = task.resolve_labels(DATA, {}, part, {}, BertConfig(), False)
    return task.examples(part, known, evaluation), known, task.collator(tokenizer, None)


def test_a_batch_holds_every_choice_of_every_row():
    found, _, collate = parts()
    batch = collate([found[0], found[1]])
    assert batch["input_ids"].shape == batch["token_type_ids"].shape == batch["attention_mask"].shape == (2, 4, 10)
    assert batch["choices"].tolist() == [[8, 9, 8, 10, -1], [7, 5, -1, -1, -1]]
    assert batch["labels"].tolist() == [3, 1]
    assert batch["attention_mask"].sum(dim=2).tolist() == [[8, 9, 8, 10], [7, 5, 1, 1]]
    tokenizer = words()
    for b, row in enumerate(MIXED[:2]):
        for c, choice in enumerate(row["choices"]):
            expected = tokenizer(row["context"], choice, return_tensors="pt")
            real = batch["attention_mask"][b, c].bool()
            assert torch.equal(batch["input_ids"][b, c][real], expected["input_ids"][0])
            assert torch.equal(batch["token_type_ids"][b, c][real], expected["token_type_ids"][0])
    assert batch["input_ids"][batch["attention_mask"] == 0].unique().tolist() == [0]
    assert set(models_own(batch)) == {"input_ids", "token_type_ids", "attention_mask"}
    assert task.collator(tokenizer, None, 8)([found[0]])["input_ids"].shape == (1, 4, 16)


def test_rows_are_as_long_as_they_are_in_a_batch():
    found, _, _ = parts()
    assert found.lengths.tolist() == [4 * 10, 2 * 7, 3 * 11, 5 * 5]
    found, _, _ = parts(evaluation=True)
    assert [found[i]["index"] for i in range(4)] == [1, 3, 2, 0]


def model(kind="bert"):
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    size |= {"vocab_size": 100, "initializer_range": 1.0}
    if kind == "xlnet":
        made = XLNetForMultipleChoice(
            XLNetConfig(vocab_size=100, d_model=16, n_layer=1, n_head=2, d_inner=32, initializer_range=1.0)
        )
    elif kind == "roberta":
        made = RobertaForMultipleChoice(
            RobertaConfig(**size, max_position_embeddings=80, pad_token_id=0, type_vocab_size=2)
        )
    else:
        made = BertForMultipleChoice(BertConfig(**size))
    return made.eval()


def said(network, found, known, collate, size):
    """What is said of each row, `size` of them in a batch."""
    batches = [collate([found[i] for i in range(at, min(at + size, len(found)))]) for at in range(0, len(found), size)]
    with torch.inference_mode():
        kept = [task.forward_for_predict(network, batch, known).numpy() for batch in batches]
    return dict(task.postprocess(np.concatenate(kept), found, known))


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlnet"])
def test_predictions_do_not_depend_on_the_neighbours(kind):
    tokenizer = words("$A [SEP] $B:1 [SEP]:1 [CLS]:2", padding_side="left") if kind == "xlnet" else words()
    network, (found, known, collate) = model(kind), parts(MIXED * 3, tokenizer, evaluation=True)
    alone = said(network, found, known, collate, 1)
    assert len({tuple(each["scores"]) for each in alone.values()}) == len(MIXED)
    for size in (2, 5, 12):
        together = said(network, found, known, collate, size)
        for row, one in alone.items():
            assert together[row]["choice"] == one["choice"]
            assert together[row]["scores"] == pytest.approx(one["scores"], abs=2e-6)
    for row, one in alone.items():
        choices = MIXED[row % 4]["choices"]
        assert len(one["scores"]) == len(choices)
        assert sum(one["scores"]) == pytest.approx(1, abs=1e-5)
        assert one["score"] == max(one["scores"]) == one["scores"][one["choice"]]
        assert one["text"] == choices[one["choice"]]


def test_the_loss_is_that_of_each_row_alone():
    network, (found, known, collate) = model(), parts()
    batch = collate([found[i] for i in range(4)])
    outputs = network(**models_own(batch))
    losses_ = task.losses(outputs, batch, known)
    for i, row in enumerate(MIXED):
        alone = collate([found[i]])
        logits = network(**models_own(alone)).logits
        assert logits.shape == (1, len(row["choices"]))
        expected = F.cross_entropy(logits, alone["labels"])
        smooth = F.cross_entropy(logits, alone["labels"], label_smoothing=0.3)
        assert losses_[i].item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)
        for training, wanted in ((True, smooth), (False, expected)):
            got = task.losses(outputs, batch, known, training, label_smoothing=0.3)[i]
            assert got.item() == pytest.approx(wanted.item(), rel=1e-4, abs=1e-5)
    losses_.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_a_choice_that_is_not_there_is_never_chosen():
    batch = {"choices": torch.tensor([[3, 3, -1, -1], [3, 3, 3, -1]]), "index": torch.arange(2)}
    outputs = SimpleNamespace(logits=torch.tensor([[-9.0, -8.0, 50.0], [1.0, 0.0, 2.0]]))
    kept = task.preprocess_logits_for_metrics(None, outputs, batch, task.ChoiceSpec())
    assert kept[:, 0].tolist() == [1.0, 2.0]
    best = outputs.logits.masked_fill(batch["choices"][:, :3] == task.NONE, -torch.inf).softmax(dim=1).amax(dim=1)
    assert kept[:, 1].tolist() == pytest.approx(best.tolist())
    outlined = task.forward_for_predict(lambda: outputs, batch, task.ChoiceSpec())
    assert outlined.shape == (2, 5)
    assert outlined[0, 3:].tolist() == [0, 0]
    assert outlined[:, 1:].sum(dim=1).tolist() == pytest.approx([1, 1])


def test_accuracy_goes_by_row_whatever_their_order():
    found, _, _ = parts(evaluation=True)  # rows 1, 3, 2, 0, whose answers are 1, 2, 0, 3
    assert task.metrics(np.array([[1.0], [2.0], [0.0], [3.0]]), found) == {"accuracy": 1.0}
    assert task.metrics(np.array([[1.0], [2.0], [1.0], [2.0]]), found) == {"accuracy": 0.5}


# --- from end to end --------------------------------------------------------------------------------------------------

# The tiny BERT of conftest.py, with weights wide enough to learn in a second.
BERT = MASKED.removesuffix(REST).replace('task = "masked-lm"', "").replace("[tok", "initializer_range = 0.1\n[tok")
RECIPE = (
    'task = "multiple-choice"'
    + BERT
    + """[data]
path = "rows.csv"
validation_fraction = 0.2
[trainer]
max_steps = 150
per_device_train_batch_size = 16
learning_rate = 5e-3
logging_steps = 10
train_sampling_strategy = "group_by_length"
"""
)
ANIMALS = ("fox", "hen", "owl", "cat", "dog")


def rows(number=200):
    """The right choice names the animal of the question; two to four choices, one column each."""
    found = []
    for i in range(number):
        count, right = 2 + i % 3, i // 3 % (2 + i % 3)
        others = [animal for animal in ANIMALS if animal != ANIMALS[i % 5]]
        choices = [f"it is the {others[(i + c) % 4]}" for c in range(count)]
        choices[right] = f"it is the {ANIMALS[i % 5]}"
        found.append(
            {"id": f"q{i}", "question": f"who {'sings ' * (i % 4)}? the {ANIMALS[i % 5]} !", "choices": choices}
        )
        found[-1]["answer"] = "ABCD"[right]
    return found


@pytest.fixture
def place(workplace):
    with (workplace / "rows.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["id", "question", "choices", "answer"])
        writer.writeheader()
        writer.writerows({**row, "choices": json.dumps(row["choices"])} for row in rows())
    (workplace / "recipe.toml").write_text(RECIPE)
    return workplace


def run(llmkit, *words_, name="run"):
    done = llmkit("finetune", "recipe.toml", *words_, "--output-dir", name)
    assert done.exit_code == 0, done.stderr
    return done.stderr


def test_it_learns_and_predicts_from_the_command_line(place, llmkit):
    stderr = run(llmkit)
    assert "choice 0" in stderr
    record = json.loads((place / "run/run.json").read_text())
    assert losses(place / "run")[-1] < 0.3 * losses(place / "run")[0]
    assert record["metrics"]["eval_accuracy"] > 0.9
    assert record["columns"] == {"question": "question", "choices": "choices", "answer": "answer"}
    config = json.loads((place / "run/config.json").read_text())
    assert config["architectures"] == ["BertForMultipleChoice"]
    assert not {"id2label", "num_labels", "problem_type"} & {key for key, value in config.items() if value is not None}
    found = json.loads(llmkit("evaluate", "run").stdout)
    assert found["eval_accuracy"] == record["metrics"]["eval_accuracy"]

    new = [{key: value for key, value in row.items() if key != "answer"} for row in rows(20)]
    (place / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in new))
    done = llmkit("predict", "run", "--input", "new.jsonl", "--output", "given.jsonl")
    assert done.exit_code == 0, done.stderr
    given = [json.loads(line) for line in (place / "given.jsonl").read_text().splitlines()]
    assert [each["id"] for each in given] == [row["id"] for row in new]
    assert sum("ABCD"[each["choice"]] == row["answer"] for each, row in zip(given, rows(20), strict=True)) >= 18
    for each, row in zip(given, new, strict=True):
        assert each["text"] == row["choices"][each["choice"]]
        assert len(each["scores"]) == len(row["choices"])
        (place / "one.jsonl").write_text(json.dumps(row))
        (alone,) = map(json.loads, llmkit("predict", "run", "--input", "one.jsonl").stdout.splitlines())
        assert alone["scores"] == pytest.approx(each["scores"], abs=1e-5)

    (place / "bad.jsonl").write_text(json.dumps(new[0]) + "\n" + json.dumps({**new[1], "choices": ["x"]}))
    done = llmkit("predict", "run", "--input", "bad.jsonl")
    assert done.exit_code == 0
    first, second = map(json.loads, done.stdout.splitlines())
    assert "choice" in first
    assert second["error"] == "1 choice, where at least two are expected"


RELOAD = """
import json, torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForMultipleChoice, AutoTokenizer
config = AutoConfig.from_pretrained("run/model_config.json")
base = AutoModelForMultipleChoice.from_pretrained("base", config=config)
model = PeftModel.from_pretrained(base, "run").eval()
words = AutoTokenizer.from_pretrained("run")
batch = words(["who? the fox !"] * 2, ["it is the fox", "it is the hen"], padding=True, return_tensors="pt")
with torch.no_grad():
    print(json.dumps(model(**{name: values[None] for name, values in batch.items()}).logits.tolist()))
"""


def test_an_adapter_loads_in_plain_peft_with_identical_logits_and_its_head(place, llmkit):
    done = llmkit("pretrain", "masked.toml", "--output-dir", "base")
    assert done.exit_code == 0, done.stderr
    recipe = 'task = "multiple-choice"\n[model]\nname = "base"\n' + RECIPE[RECIPE.index("[data]") :]
    (place / "recipe.toml").write_text(recipe)
    run(llmkit, "lora.r=4", "trainer.max_steps=4")
    saved = load_file(place / "run/adapter_model.safetensors")
    assert {name.split(".")[2] for name in saved if "lora" not in name} == {"bert", "classifier"}  # bert: its pooler
    done = forks.run("-c", RELOAD)
    assert done.returncode == 0, done.stderr

    from transformers import AutoTokenizer

    from llmkit.models import loading

    ours, tokenizer = loading.load_model("run", AutoModelForMultipleChoice), AutoTokenizer.from_pretrained("run")
    batch = tokenizer(["who? the fox !"] * 2, ["it is the fox", "it is the hen"], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = ours(**{name: values[None] for name, values in batch.items()}).logits
    assert torch.equal(logits, torch.tensor(json.loads(done.stdout)))
    told = json.loads((place / "run/run.json").read_text())["metrics"]["eval_loss"]
    assert json.loads(llmkit("evaluate", "run").stdout)["eval_loss"] == pytest.approx(told, rel=1e-6)


def test_a_roformer_judges_a_choice_by_its_first_token_and_not_by_padding():
    """Its head takes the last one where the configuration does not say, whatever it is."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = AutoConfig.for_model("roformer", **sizes)
    part = encoded([{"context": "a b", "choices": ["c", "d"], "label": 0}])
    task.resolve_labels(DATA, {}, part, {}, config, False)
    model = AutoModelForMultipleChoice.from_config(config).eval()
    ids = torch.tensor([[[2, 5, 6, 3]]])
    padded = torch.tensor([[[2, 5, 6, 3, 0, 0]]])
    alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    there = model(input_ids=padded, attention_mask=(padded > 0).long()).logits
    assert torch.allclose(there, alone, atol=1e-5)
