"""What a model gets wrong: by class, in the terminal; every row or document, in a file, with the figures of stdout."""

import csv
import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import CAUSAL, MASKED, corpus
from predictions import BERT, json_lines, table
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from llmkit import metrics as measures
from llmkit.cli import app
from llmkit.metrics import evaluation_metrics
from llmkit.reports import report
from llmkit.reports.formatting import figure
from llmkit.runs import predictions
from llmkit.tasks.task import Result, Results
from llmkit.terminal import columns_of
from llmkit.training.mistakes import tables

TRAINER = "[trainer]\nmax_steps = {steps}\nper_device_train_batch_size = 16\nlearning_rate = 5e-3\n"
BART = """[model.config]
model_type = "bart"
d_model = 32
encoder_layers = 1
decoder_layers = 1
encoder_attention_heads = 2
decoder_attention_heads = 2
encoder_ffn_dim = 64
decoder_ffn_dim = 64
max_position_embeddings = 32
[tokenizer]
type = "wordpiece"
vocab_size = 200
"""
HELD = "validation_fraction = 0.4\n"
RUNS = {  # of each the task, the model, [data] and how long it learns: not long enough to make no mistake
    "three": ("text-classification", BERT, 'path = "three.csv"', 25),
    "multi": ("text-classification", BERT, 'path = "multi.jsonl"', 25),
    "value": ("text-classification", BERT, 'path = "value.csv"\nproblem_type = "regression"', 10),
    "tags": ("token-classification", BERT, 'path = "tags.jsonl"\nmax_length = 16\nstride = 4', 12),
    "plain": ("token-classification", BERT, 'path = "plain.jsonl"', 10),
    "qa": ("question-answering", BERT, 'path = "qa.jsonl"\nmax_length = 24\nstride = 6', 40),
    "choice": ("multiple-choice", BERT, 'path = "choice.jsonl"', 15),
    "pairs": ("seq2seq", BART, 'path = "pairs.csv"\nmax_length = 16\nmax_target_length = 8', 30),
}
ANIMALS = ("fox", "hen", "owl", "cat", "dog")


def write_data() -> None:
    lines = [line.split(" at ")[0] + " far" * (i % 6) for i, line in enumerate(corpus(200).splitlines())]
    kinds = ["bird" if any(a in line[:8] for a in ("hen", "owl")) else line.split()[1] for line in lines]
    kinds = ["pet" if kind in ("cat", "dog") else kind for kind in kinds]
    rows = zip(lines, kinds, strict=True)
    Path("three.csv").write_text("text,label,score\n" + "".join(f"{a},{b},{i}\n" for i, (a, b) in enumerate(rows)))
    json_lines("multi.jsonl", [{"text": t, "labels": sorted({a for a in ANIMALS if a in t})} for t in lines])
    Path("value.csv").write_text("text,label\n" + "".join(f"{t},{len(t) / 10}\n" for t in lines))
    tagged = [
        (
            words,
            ["B-BIRD" if word in ("hen", "owls") else "B-PET" if word in ("dog", "cats") else "O" for word in words],
        )
        for words in map(str.split, lines)
    ]
    json_lines("tags.jsonl", [{"tokens": words, "tags": tags} for words, tags in tagged])
    json_lines("plain.jsonl", [{"tokens": w, "tags": [t.strip("B-") or "X" for t in tags]} for w, tags in tagged])
    json_lines(
        "qa.jsonl",
        [
            {
                "question": "who saw ?",
                "context": f"{line} far away",
                "answers": {"text": [line.split()[1]], "answer_start": [4]}
                if i % 4
                else {"text": [], "answer_start": []},
            }
            for i, line in enumerate(lines)
        ],
    )
    json_lines(
        "choice.jsonl",
        [
            {"question": line, "choices": [f"the {ANIMALS[(i + c) % 5]}" for c in range(2 + i % 2)], "answer": i % 2}
            for i, line in enumerate(lines)
        ],
    )
    Path("pairs.csv").write_text("text,summary\n" + "".join(f"{t},{' '.join(t.split()[1:3])}\n" for t in lines))
    Path("corpus.txt").write_text(corpus())
    json_lines("chat.jsonl", [{"prompt": f"the fox {n}", "completion": f"saw {n}" * (n % 3 + 1)} for n in range(40)])


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with data and a finished run of every task."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_data()
        for name, text in {"causal": CAUSAL, "masked": MASKED}.items():
            Path(f"{name}.toml").write_text(text)
            done = CliRunner().invoke(app, ("pretrain", f"{name}.toml", "--output-dir", name), catch_exceptions=False)
            assert done.exit_code == 0, done.stderr
        recipes = {
            name: f'task = "{task}"\n{model}[data]\n{data}\n{HELD}{TRAINER.format(steps=steps)}'
            for name, (task, model, data, steps) in RUNS.items()
        }
        recipes["chat"] = (
            f'task = "chat"\n[model]\nname = "causal"\n[data]\npath = "chat.jsonl"\nmax_length = 30\n{HELD}'
        )
        recipes["chat"] += TRAINER.format(steps=3)
        for name, text in recipes.items():
            Path(f"{name}.toml").write_text(text)
            done = CliRunner().invoke(app, ("finetune", f"{name}.toml", "--output-dir", name), catch_exceptions=False)
            assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture
def evaluated(home, tmp_path, llmkit, monkeypatch):
    """The metrics on stdout, the screen, and the rows of the file in their order, as read from JSON lines."""
    (tmp_path / "home").symlink_to(home)
    monkeypatch.chdir(home)

    def call(*words: str, suffix: str = "jsonl"):
        file = tmp_path / f"wrong.{suffix}"
        done = llmkit("evaluate", *words, "--output", str(file))
        assert done.exit_code == 0, done.stderr
        assert f"-> {file}" in done.stderr
        rows = table(file) if suffix == "csv" else [json.loads(line) for line in file.read_text().splitlines()]
        return json.loads(done.stdout), done.stderr, rows

    return call


def mean(rows, key: str) -> float:
    return sum(float(row[key]) for row in rows) / len(rows)


# --- by class ---------------------------------------------------------------------------------------------------------


def counted(*pairs, classes, unit="rows", width=80):
    rows = [Result(i, {"right": pair[0] == pair[1]}, (), [pair]) for i, pair in enumerate(pairs)]
    first, *lines = tables(Results(rows, classes, unit), width)
    assert first == f"{sum(a != b for a, b in pairs):,} of {len(pairs):,} rows are wrong"
    return lines


def test_a_table_by_hand():
    pairs = [("a", "a")] * 3 + [("a", "b")] + [("b", "b")] * 2 + [("b", "a")] * 2
    lines = counted(*pairs, classes=["a", "b"])
    assert [line.split() for line in lines] == [
        ["class", "precision", "recall", "f1", "rows"],
        ["a", "0.6000", "0.7500", "0.6667", "4"],
        ["b", "0.6667", "0.5000", "0.5714", "4"],
        ["mean", "of", "2", "0.6333", "0.6250", "0.6190", "8"],
        ["all", "together", "0.6250", "0.6250", "0.6250", "8"],
        [],
        ["true,", "and", "taken", "for", "a", "b"],
        ["a", "3", "1"],
        ["b", "2", "2"],
    ]


def test_what_is_missed_or_is_none_counts_against_its_class_alone():
    """One LOC is found, one missed, one is none, and one is taken for a PER."""
    pairs = [("LOC", "LOC"), ("LOC", None), (None, "LOC"), ("LOC", "PER")]
    lines = [line.split() for line in counted(*pairs, classes=["LOC", "PER"], unit="entities")]
    assert lines[1] == ["LOC", "0.5000", "0.3333", "0.4000", "3"]
    assert lines[2] == ["PER", "0.0000", "0.0000", "0.0000", "0"]
    assert lines[4] == ["all", "together", "0.3333", "0.3333", "0.3333", "3"]
    assert lines[6:] == [
        ["true,", "and", "taken", "for", "LOC", "PER", "(none)"],
        ["LOC", "1", "1", "1"],
        ["PER", ".", ".", "."],
        ["(none)", "1", ".", "."],
    ]
    assert "" not in counted(("LOC", "LOC"), ("LOC", None), classes=["LOC"])  # nothing is taken for another


@pytest.mark.parametrize(
    "name", ["class {}", "a class with a name that is far too long for a table, number {}", "很好的电影 {}"]
)
@pytest.mark.parametrize("number", [2, 8, 77])
@pytest.mark.parametrize("width", [80, 50])
def test_a_table_fits_into_the_width_and_says_what_it_leaves_out(name, number, width):
    classes = [name.format(i) for i in range(number)]
    pairs = [(one, one) for one in classes for _ in range(1000)]
    pairs += [(classes[-1], classes[-2])] * 9 + [(classes[0], classes[-1])]
    lines = counted(*pairs, classes=classes, width=width)
    assert max(map(columns_of, lines)) <= width
    screen = "\n".join(lines)
    assert ("the 20 most frequent of 77" in screen) == (number == 77)
    assert ("that are most often confused, of 77" in screen) == (number == 77)
    assert "\x1b" not in screen
    confusion = lines[lines.index("") + 1 :]
    assert any(" 9 " in f"{line} " for line in confusion)
    if number == 77:  # the others are added up: no decision is lost
        counts = [cell.replace(",", "") for line in confusion[2:] for cell in line.split()[-4:] if cell != "."]
        assert sum(map(int, counts)) == len(pairs)


def test_a_name_that_would_move_the_cursor_is_escaped():
    assert "\x1b" not in "".join(counted(("\x1b[2J", "\x1b[2J"), classes=["\x1b[2J"]))


# --- classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_the_file_of_a_classifier_has_the_figures_of_stdout(suffix, evaluated):
    metrics, screen, rows = evaluated("three", suffix=suffix)
    right = [str(row["right"]) == "True" for row in rows]
    assert 0 < sum(right) < len(rows)
    assert sum(right) / len(rows) == pytest.approx(metrics["eval_accuracy"])
    assert [row["truth"] == row["prediction"] for row in rows] == right
    assert mean(rows, "loss") == pytest.approx(metrics["eval_loss"], abs=1e-5)
    assert [row["truth"] for row in rows] == [row["label"] for row in rows]  # the column of the data
    assert f"{right.count(False)} of {len(rows)} rows are wrong" in screen
    (macro,) = [line.split()[-2] for line in screen.splitlines() if line.startswith("mean of 3")]
    assert float(macro) == pytest.approx(metrics["eval_f1"], abs=5e-5)
    for name in {row["truth"] for row in rows}:
        (line,) = [
            line.split() for line in screen.splitlines() if line.split()[:1] == [name] and len(line.split()) == 5
        ]
        hits = sum(row["truth"] == row["prediction"] == name for row in rows)
        assert float(line[1]) == pytest.approx(hits / max(1, sum(row["prediction"] == name for row in rows)), abs=5e-5)
        assert float(line[2]) == pytest.approx(hits / sum(row["truth"] == name for row in rows), abs=5e-5)
        assert int(line[4]) == sum(row["truth"] == name for row in rows)


def test_the_surest_mistake_is_first_and_the_surest_right_row_last(evaluated):
    """The data has a column `score`, which stays as it is."""
    _, _, rows = evaluated("three")
    source = {row["text"]: row for row in table("three.csv")}
    assert all(source[row["text"]] == {key: row[key] for key in ("text", "label", "score")} for row in rows)
    wrong = [row["evaluated_score"] for row in rows if not row["right"]]
    assert [row["right"] for row in rows] == [False] * len(wrong) + [True] * (len(rows) - len(wrong))
    assert wrong == sorted(wrong, reverse=True)
    right = [row["evaluated_score"] for row in rows if row["right"]]
    assert right == sorted(right)


def test_scores_and_losses_are_those_of_the_model(evaluated):
    _, _, rows = evaluated("three")
    model, words = AutoModelForSequenceClassification.from_pretrained("three"), AutoTokenizer.from_pretrained("three")
    for row in rows[:5]:
        with torch.no_grad():
            chances = model(**words(row["text"], return_tensors="pt")).logits[0].softmax(-1)
        by_name = {model.config.id2label[i]: float(chance) for i, chance in enumerate(chances)}
        assert row["prediction"] == max(by_name, key=by_name.__getitem__)
        assert row["evaluated_score"] == pytest.approx(max(by_name.values()), abs=1e-5)
        assert row["loss"] == pytest.approx(-math.log(by_name[row["truth"]]), abs=1e-4)


def test_several_labels_a_row(evaluated):
    metrics, screen, rows = evaluated("multi")
    assert mean(rows, "right") == pytest.approx(metrics["eval_accuracy"])
    assert mean(rows, "loss") == pytest.approx(metrics["eval_loss"], abs=1e-5)
    assert [row["truth"] for row in rows] == [row["labels"] for row in rows]
    for row in rows:
        assert row["prediction"] == [name for name, score in row["scores"].items() if score > 0.5]
    assert [row["right"] for row in rows] == sorted(row["right"] for row in rows)
    (macro,) = [line.split()[-2] for line in screen.splitlines() if line.startswith("mean of 5")]
    (micro,) = [line.split()[-2] for line in screen.splitlines() if line.startswith("all together")]
    assert float(macro) == pytest.approx(metrics["eval_f1_macro"], abs=5e-5)
    assert float(micro) == pytest.approx(metrics["eval_f1"], abs=5e-5)
    assert "taken for" not in screen


def test_of_values_the_largest_error_is_first(evaluated):
    metrics, _, rows = evaluated("value")
    for row in rows:
        assert row["truth"] == pytest.approx(float(row["label"]), abs=1e-5)
        assert row["difference"] == pytest.approx(row["prediction"] - row["truth"], abs=1e-5)
    errors = [abs(row["difference"]) for row in rows]
    assert errors == sorted(errors, reverse=True)
    assert sum(error**2 for error in errors) / len(rows) == pytest.approx(metrics["eval_mean_squared_error"], rel=1e-4)
    assert mean(rows, "loss") == pytest.approx(metrics["eval_loss"], rel=1e-4)


def test_a_class_that_the_model_does_not_have_is_wrong(evaluated, home):
    """Its F1 is one of those that eval_f1 is the mean of."""
    Path("strange.csv").write_text("text,label\nthe fox saw,fox\nthe hen fed,bird\nthe cow ran,cow\nthe dog led,pet\n")
    metrics, screen, rows = evaluated("three", "data.path=strange.csv")
    (cow,) = [row for row in rows if row["label"] == "cow"]
    assert (cow["truth"], cow["right"], cow["loss"]) == ("(unknown to the model)", False, None)
    assert mean(rows, "right") == pytest.approx(metrics["eval_accuracy"])
    (macro,) = [line.split()[-2] for line in screen.splitlines() if line.startswith("mean of")]
    assert float(macro) == pytest.approx(metrics["eval_f1"], abs=5e-5)


def test_several_validation_splits_are_in_one_file(evaluated, home):
    rows = table("three.csv")
    for name, part in {"near": rows[:30], "far": rows[30:100]}.items():
        with Path(f"{name}.csv").open("w") as stream:
            csv.writer(stream).writerows([["text", "label"], *([row["text"], row["label"]] for row in part)])
    words = (
        'data.data_files={train="three.csv", near="near.csv", far="far.csv"}',
        'data.validation_split=["near", "far"]',
        "data.validation_fraction=",
    )
    metrics, screen, rows = evaluated("three", "three.toml", *words)
    assert Counter(row["split"] for row in rows) == {"near": 30, "far": 70}
    for name, key in (("near", "eval_accuracy"), ("far", "eval_far_accuracy")):
        assert mean([row for row in rows if row["split"] == name], "right") == pytest.approx(metrics[key])
        assert f"{name}: " in screen
    assert [row["right"] for row in rows] == sorted(row["right"] for row in rows)


# --- tags, answers, choices, texts ------------------------------------------------------------------------------------


def test_tags_are_shown_as_entities_with_the_errors_of_each_sentence(evaluated):
    metrics, screen, rows = evaluated("tags")
    errors = [row["errors"] for row in rows]
    assert errors == sorted(errors, reverse=True)
    assert sum(errors) > 0
    pairs = [
        [Counter((each["label"], each["text"]) for each in row[side]) for side in ("truth", "prediction")]
        for row in rows
    ]
    for row, (truth, _) in zip(rows, pairs, strict=True):
        kinds = {"B-BIRD": "BIRD", "B-PET": "PET"}
        told = Counter((kinds[tag], word) for word, tag in zip(row["tokens"], row["tags"], strict=True) if tag in kinds)
        assert truth == told
    hits = sum(sum((truth & found).values()) for truth, found in pairs)
    found, gold = (sum(sum(pair[side].values()) for pair in pairs) for side in (1, 0))
    assert metrics["eval_f1"] == pytest.approx(2 * hits / (found + gold), abs=1e-6)
    (micro,) = [line.split()[-2] for line in screen.splitlines() if line.startswith("all together")]
    assert float(micro) == pytest.approx(metrics["eval_f1"], abs=5e-5)
    for kind in ("BIRD", "PET"):
        (line,) = [line.split() for line in screen.splitlines() if line.split()[:1] == [kind] and line.count(".") == 3]
        assert float(line[3]) == pytest.approx(metrics[f"eval_f1_{kind}"], abs=5e-5)
        assert int(line[4]) == sum(n for truth, _ in pairs for (label, _), n in truth.items() if label == kind)
    assert "entities" in screen


def test_tags_that_mark_no_entities_are_classes_of_words(evaluated):
    metrics, screen, rows = evaluated("plain")
    words = [pair for row in rows for pair in zip(row["truth"], row["prediction"], strict=True)]
    assert sum(a == b for a, b in words) / len(words) == pytest.approx(metrics["eval_accuracy"])
    assert all(
        row["errors"] == sum(a != b for a, b in zip(row["truth"], row["prediction"], strict=True)) for row in rows
    )
    (macro,) = [line.split()[-2] for line in screen.splitlines() if line.startswith("mean of")]
    assert float(macro) == pytest.approx(metrics["eval_f1_macro"], abs=5e-5)


def test_answers_have_their_own_scores_the_worst_first(evaluated):
    metrics, _, rows = evaluated("qa")
    assert mean(rows, "exact_match") == pytest.approx(metrics["eval_exact_match"])
    assert mean(rows, "f1") == pytest.approx(metrics["eval_f1"])
    assert [row["right"] for row in rows] == [row["exact_match"] == 100 for row in rows]
    assert all(row["truth"] == row["answers"]["text"] for row in rows)
    keys = [(row["f1"], -row["score"]) for row in rows]
    assert keys == sorted(keys)
    assert {row["f1"] for row in rows} >= {0, 100}


def test_choices_are_shown_with_their_texts(evaluated):
    metrics, _, rows = evaluated("choice")
    assert mean(rows, "right") == pytest.approx(metrics["eval_accuracy"])
    assert mean(rows, "loss") == pytest.approx(metrics["eval_loss"], abs=1e-5)
    for row in rows:
        assert row["truth"] == row["answer"]
        assert row["true_text"] == row["choices"][row["truth"]]
        assert row["text"] == row["choices"][row["prediction"]]
        if row["right"]:
            assert row["loss"] == pytest.approx(-math.log(row["score"]), abs=1e-4)
    wrong = [row["score"] for row in rows if not row["right"]]
    assert wrong == sorted(wrong, reverse=True)


def test_written_texts_stand_beside_their_references(evaluated):
    metrics, _, rows = evaluated("pairs")
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    for row in rows:
        assert row["truth"] == [row["summary"]]
        for key, score in scorer.score(row["summary"], row["prediction"]).items():
            assert row[key] == pytest.approx(100 * score.fmeasure, abs=1e-5)
    assert mean(rows, "rougeL") == pytest.approx(metrics["eval_rougeL"], abs=1e-5)
    assert measures.chrf([row["prediction"] for row in rows], [row["truth"] for row in rows]) == pytest.approx(
        metrics["eval_chrf"], abs=1e-5
    )
    scores = [row["chrf"] for row in rows]
    assert scores == sorted(scores)
    tokens = sum(row["tokens"] for row in rows)
    assert sum(row["loss"] * row["tokens"] for row in rows) / tokens == pytest.approx(metrics["eval_loss"], abs=1e-5)


def test_conversations_have_their_losses_and_one_that_is_too_long_says_so(evaluated, home):
    rows = [{"prompt": f"the fox {n}", "completion": "saw"} for n in range(9)]
    json_lines("long.jsonl", [*rows, {"prompt": "the fox " * 40, "completion": "saw"}])
    metrics, _, rows = evaluated("chat", "data.path=long.jsonl")
    assert "within the tokens that the model reads" in rows.pop()["error"]
    losses = [row["loss"] for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert len(rows) == 9
    tokens = sum(row["tokens"] for row in rows)
    assert sum(row["loss"] * row["tokens"] for row in rows) / tokens == pytest.approx(metrics["eval_loss"], abs=1e-5)


# --- running text -----------------------------------------------------------------------------------------------------


def test_the_loss_of_a_document_is_that_of_its_tokens(evaluated, home):
    """Independently: each token of the stream but the first is predicted once, and its document is known."""
    lines = corpus(9).splitlines()
    Path("some.txt").write_text("\n".join(lines) + "\n\n")
    metrics, _, rows = evaluated("causal", "data.path=some.txt", "data.block_size=32")
    model, words = AutoModelForCausalLM.from_pretrained("causal").eval(), AutoTokenizer.from_pretrained("causal")
    documents = [[*words(line)["input_ids"], words.eos_token_id] for line in lines]
    ids = torch.tensor([token for document in documents for token in document])
    owner = [number for number, document in enumerate(documents, 1) for _ in document]
    losses: dict[int, list[float]] = {}
    for begin in range(0, len(ids) - 1, 32):
        piece = ids[begin : begin + 33]
        with torch.no_grad():
            shares = model(piece[None, :-1]).logits[0].log_softmax(-1)
        for place, loss in enumerate((-shares.gather(1, piece[1:, None])[:, 0]).tolist(), begin + 1):
            losses.setdefault(owner[place], []).append(loss)
    assert {row["document"]: (row["tokens"], row["loss"]) for row in rows} == {
        number: (len(each), pytest.approx(sum(each) / len(each), abs=1e-4)) for number, each in losses.items()
    }
    assert all(lines[row["document"] - 1].startswith(row["text"].strip()) for row in rows)
    assert [row["loss"] for row in rows] == sorted((row["loss"] for row in rows), reverse=True)
    total = sum(row["tokens"] for row in rows)
    assert sum(row["loss"] * row["tokens"] for row in rows) / total == pytest.approx(metrics["eval_loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("run", "word"),
    [
        ("causal", "data.stride=16"),
        ("causal", "data.stride=5"),
        ("causal", "data.pack=isolated"),
        ("masked", "data.masking=token"),
        ("masked", "data.masking=each"),
    ],
)
def test_the_losses_of_documents_add_up_to_that_of_the_data(run, word, evaluated, home):
    metrics, _, rows = evaluated(run, word)
    assert len(rows) > 20
    total = sum(row["tokens"] for row in rows)
    assert sum(row["loss"] * row["tokens"] for row in rows) / total == pytest.approx(metrics["eval_loss"], abs=1e-5)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_where_it_cannot_write_it_says_so_first(home, llmkit, monkeypatch):
    monkeypatch.chdir(home)
    before = Path("three.csv").read_bytes()
    for file, said in {
        "three.csv": "is part of the data being read",
        "wrong.txt": "ends in neither .jsonl nor .csv",
        "none/wrong.csv": "there is no folder `none`",
    }.items():
        done = llmkit("evaluate", "three", "--output", file)
        assert (done.exit_code, done.stdout) == (2, "")
        assert said in done.stderr
    assert Path("three.csv").read_bytes() == before
    done = llmkit("evaluate", "three", "evaluation.metrics=[]", "--output", "wrong.csv")
    assert (done.exit_code, Path("wrong.csv").exists()) == (2, False)
    assert 'evaluation.metrics=["accuracy"]' in done.stderr
    assert llmkit("evaluate", "three", "evaluation.metrics=[]").exit_code == 0


def test_rows_that_cannot_be_used_are_counted_and_not_in_the_file(evaluated, home):
    good = "".join(f"the fox saw {n},fox\n" for n in range(40))
    Path("holes.csv").write_text(f"text,label\n{good}the hen,\n")
    metrics, _, rows = evaluated("three", "data.path=holes.csv")
    assert (metrics["skipped_rows"], len(rows)) == (1, 40)


def test_without_a_file_stdout_is_the_same(home, llmkit, evaluated):
    metrics, _, _ = evaluated("tags")
    assert json.loads(llmkit("evaluate", "tags").stdout) == metrics


# --- what a finished run keeps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*RUNS, "chat"])
def test_a_run_keeps_what_evaluate_says_of_each_row(evaluated, home, name):
    _, _, rows = evaluated(name)
    kept = list(predictions.read(home / name))
    said = ("truth", "prediction", "right", "errors", "difference", "f1", "chrf")

    def shown(row):
        return json.dumps([row.get(key) for key in said if key not in row.get("columns", ())])

    assert [row["row"] for row in kept] == list(range(len(rows)))
    assert sorted(map(shown, kept)) == sorted(map(shown, rows))
    assert sorted(row["loss"] for row in kept) == pytest.approx(sorted(row["loss"] for row in rows), abs=1e-4)
    worst = sorted((row for row in kept if "worst" in row), key=lambda row: row["worst"])
    wrong = [row for row in rows if not row.get("right")]
    assert [row["worst"] for row in worst] == list(range(1, min(20, len(wrong)) + 1))
    assert [shown(row) for row in worst] == [shown(row) for row in wrong[:20]]
    inputs = dict(json.loads((home / name / "run.json").read_text())["columns"].items())
    for row, beside in zip(worst, wrong, strict=False):
        assert row["columns"] and set(row["columns"]) <= set(inputs.values())
        assert all(beside[column] == value for column, value in row["columns"].items() if shown(row) != shown(beside))
    assert len({row["key"] for row in kept}) > len(kept) / 2


@pytest.mark.parametrize("name", [*RUNS, "chat", "causal", "masked"])
def test_every_task_has_a_report_of_its_run(home, tmp_path, name):
    run = shutil.copytree(home / name, tmp_path / name)
    page = report.write(run).read_text()
    record = json.loads((run / "run.json").read_text())
    for key, value in evaluation_metrics(record["metrics"]).items():
        assert f">{key}</th>" in page and f">{figure(float(value))}</td>" in page
    assert ("The worst mistakes" in page or "went worst" in page) == (name not in ("causal", "masked"))
    assert ("Expected calibration error" in page) == (name in ("three", "multi", "choice"))
    assert ("By class" in page) == (name in ("three", "multi", "tags", "plain"))
    assert ("Confusions" in page) == (name in ("three", "plain"))
    assert ("Predicted and true values" in page) == (name == "value")


@pytest.mark.parametrize("name", ["three", "tags", "qa", "choice"])
def test_the_report_of_a_verb_marks_the_words_that_decided(home, tmp_path, llmkit, name):
    run = shutil.copytree(home / name, tmp_path / name)
    report.write(run)
    before = (run / "report.html").read_text()
    assert "<mark" not in before and "marks the words that decided" in before
    done = llmkit("report", str(run))
    assert (done.exit_code, done.stdout) == (0, f"{run}/report.html\n")
    after = (run / "report.html").read_text()
    worst = sum("worst" in row for row in predictions.read(run))
    assert after.count('<p class="figures">For ') == worst > 0
