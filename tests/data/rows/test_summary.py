"""The look at the rows before training: what is counted, and from where on it is said."""

import json

import pytest
from conftest import MASKED

from llmkit.data.rows.examples import Encoded, key_of
from llmkit.data.rows.summary import lines, look
from llmkit.data.rows.table import Rows
from llmkit.errors import UserError


def part(texts, length=10, file="x.csv"):
    """What rows with these texts are once encoded, a word a token, cut to `length`."""
    listed = [(f"`{file}`, line {n}", {"text": text}) for n, text in enumerate(texts, 2)]
    done = Encoded(Rows(lambda: iter(listed), ("text",), {}, "", f"`{file}`"))
    for number, text in enumerate(texts):
        words = len(text.split())
        done.row.append(number)
        done.lengths.append(words)
        done.cut.append(max(0, words - length))
        done.keys.append(key_of(text))
        if not words:
            done.empty.append(number)
    return done


def texts(number, start=0):
    return [f"text {n}" for n in range(start, start + number)]


EVEN = {"a": 50, "b": 50}


def looked(train, *validation, balance=EVEN, **balances):
    held_out = {"validation" if not n else f"other {n}": each for n, each in enumerate(validation)}
    return look(train, held_out, {"train": balance, **dict.fromkeys(held_out, EVEN), **balances})


def test_rows_are_counted():
    record, warnings = looked(part([*texts(99), "a long text of twelve words that is cut after ten of"]))
    assert record["train"] == {
        "rows": 100,
        "examples": 100,
        "tokens": 99 * 2 + 12,
        "lengths": {"min": 2, "5%": 2, "50%": 2, "95%": 2, "max": 12},
        "length_histogram": {"edges": [*range(2, 14)], "counts": [99, *[0] * 9, 1]},
        "truncated_rows": 1,
        "truncated_tokens": 2,
        "empty_rows": 0,
        "duplicate_rows": 0,
        "unlearned_rows": 0,
        "balance": EVEN,
    }
    assert warnings == []
    assert json.loads(json.dumps(record)) == record


LONG = "one two three four five six seven eight nine ten eleven"


@pytest.mark.parametrize(
    ("few", "many", "message"),
    [
        (["text 1"] * 5, ["text 1"] * 6, "train: 6 of 100 rows (6.0%) repeat an earlier one"),
        ([LONG + str(n) for n in range(5)], [LONG + str(n) for n in range(6)], "6 of 100 rows (6.0%) are longer than"),
        ([], [" "], "1 of 100 rows (1.0%) have no text, such as `x.csv`, line 101"),
    ],
)
def test_a_warning_comes_above_its_threshold(few, many, message):
    assert looked(part(texts(100 - len(few)) + few))[1] == []
    (warning,) = looked(part(texts(100 - len(many)) + many))[1]
    assert message in warning


def test_what_is_cut_is_told_in_tokens_too():
    (warning,) = looked(part(["a b c d e f g h"] + ["a b c d e f " + str(n) for n in range(3)], length=6))[1]
    assert "data.max_length" in warning
    assert f"{5 / 29:.1%} of all tokens" in warning


def test_rows_that_teach_nothing_are_named():
    train = part(texts(100))
    assert looked(train)[1] == []
    train.unlearned = [3, 7]
    record, (warning,) = looked(train)
    assert record["train"]["unlearned_rows"] == 2
    assert "2 of 100 rows (2.0%) are left out: their answer does not fit into data.max_length" in warning
    assert "`x.csv`, line 5" in warning


def test_validation_rows_that_are_in_the_training_data_flatter():
    train, held_out = part(texts(300)), [*texts(99, 1000)]
    record, warnings = looked(train, part([*held_out, "text 7"]))
    assert record["validation"]["rows_also_in_train"] == 1
    assert warnings == []
    record, (warning,) = looked(train, part([*held_out[1:], "text 7", "text 8"], file="dev.csv"))
    assert record["validation"]["rows_also_in_train"] == 2
    assert "validation: 2 of 100 rows (2.0%) are also in the training data, such as `dev.csv`, line 100" in warning
    assert "rows_also_in_train" not in looked(None, part(texts(9)))[0]["validation"]


def test_each_split_is_looked_at():
    record, warnings = looked(part(texts(10)), part(texts(10, 50)), part([*texts(9, 70), ""]))
    assert list(record) == ["train", "validation", "other 1"]
    assert [warning.split(":")[0] for warning in warnings] == ["other 1"]


@pytest.mark.parametrize(
    ("balance", "said"),
    [
        ({"a": 95, "b": 5}, []),
        ({"a": 96, "b": 4}, ["train: few of 100 rows are b (4)"]),
        ({"a": 100, "b": 0, "c": 0}, ["train: no row is b, c"]),
        (dict.fromkeys(map(str, range(50)), 2), []),  # rare, and no rarer than the others
        (
            {"a": 930, **dict.fromkeys("bcdefgh", 1)},
            ["train: few of 100 rows are b (1), c (1), d (1), e (1), f (1) and 2"],
        ),
        ({"answerable": 100, "unanswerable": 0}, []),
        ({"min": 0.0, "mean": 0.0, "max": 1.0}, []),
    ],
)
def test_classes_that_are_rare_or_never_there_are_named(balance, said):
    found = looked(part(texts(100)), balance=balance)[1]
    assert len(found) == len(said)
    assert all(start in warning for start, warning in zip(said, found, strict=True))


def test_the_balance_of_validation_is_no_cause_for_a_warning():
    assert looked(part(texts(50)), part(texts(100, 200)), validation={"a": 100, "b": 0})[1] == []


def test_nothing_but_empty_texts_is_an_error():
    with pytest.raises(UserError, match=r"`x.csv`: no row of the train data has text"):
        looked(part(["", " "]))
    with pytest.raises(UserError, match=r"`dev.csv`: no row of the validation data has text"):
        looked(part(texts(5)), part([""], file="dev.csv"))


def test_the_record_in_lines():
    record, _ = looked(part(["a b", "c d e f"]), part(["x"]), balance={"happy": 1, "sad": 1})
    assert lines(record)[:4] == [
        "train: 2 rows, 6 tokens",
        "  2 to 4 tokens, median 3, 95% up to 4",
        "  happy 50.0%, sad 50.0%",
        "validation: 1 row, 1 token",
    ]
    ranged, _ = looked(part(["a b", "c d"]), balance={"min": 0.0, "mean": 1.25, "max": 2.5})
    assert lines(ranged)[2] == "  values 0 to 2.5, mean 1.25"
    named, _ = looked(part(["a b", "c d"]), balance={"kind": 1, "mean": 1})  # classes, not a range
    assert lines(named)[2] == "  kind 50.0%, mean 50.0%"
    many, _ = looked(part(texts(20)), balance=dict.fromkeys("abcdefghij", 2))
    assert lines(many)[2].endswith("h 10.0% and 2 more")
    windows = part(["a b", "c d"])
    windows.row = [0, 0, 1]
    assert lines(looked(windows)[0])[0] == "train: 2 rows in 3 windows, 4 tokens"


def test_a_run_prints_its_warnings_and_keeps_the_counts(workplace, llmkit):
    recipe = MASKED.split("[data]")[0].replace("masked-lm", "text-classification")
    recipe += '[data]\npath = "rows.jsonl"\nvalidation_fraction = 0.3\nhold_out = "hash"\nmax_length = 8\n'
    recipe += "[trainer]\nmax_steps = 1\n"
    (workplace / "mini.toml").write_text(recipe)
    rows = [{"text": f"tale {n % 25} of the hen" + " that ran" * (n % 25 % 5), "label": n % 25 % 2} for n in range(50)]
    rows[30]["text"] = " "
    (workplace / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = llmkit("finetune", "mini.toml")
    assert done.exit_code == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning")]
    found = json.loads((workplace / "runs/mini/run.json").read_text())["data"]
    train, validation = found["train"], found["validation"]
    with_blank, name = (train, "train") if train["empty_rows"] else (validation, "validation")
    assert train["rows"] + validation["rows"] == 50
    assert train["empty_rows"] + validation["empty_rows"] == 1
    assert any(f"{name}: 1 of {with_blank['rows']} rows" in line and "line 31" in line for line in warnings)
    assert train["duplicate_rows"] > 0
    assert any(f"train: {train['duplicate_rows']} of {train['rows']} rows" in line for line in warnings)
    assert validation["rows_also_in_train"] > 0
    assert any(f"{validation['rows_also_in_train']} of {validation['rows']} rows" in line for line in warnings)
    assert train["truncated_rows"] > 0
    assert any(f"{train['truncated_rows']} of {train['rows']} rows" in line for line in warnings)
    assert done.stdout == ""
