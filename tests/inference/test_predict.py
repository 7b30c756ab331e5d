"""Predicting: every kind of model, texts and files, the same whatever else is in the batch, and clear refusals."""

import csv
import gzip
import io
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import CAUSAL, MASKED, REST, corpus
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from llmkit.cli import app
from llmkit.inference import fill_mask, rows_io
from llmkit.inference import predict as prediction

ANIMALS = ("fox", "hen", "owl", "cat", "dog")
BIRDS = ("hen", "owl")
PLACES = ("barn", "mill", "wood", "well")
# The tiny BERT of conftest.py, with weights wide enough to learn in a second.
BERT = MASKED.removesuffix(REST).replace('task = "masked-lm"', "").replace("[tok", "initializer_range = 0.1\n[tok")
TRAINER = """validation_fraction = 0.1
[trainer]
max_steps = 80
per_device_train_batch_size = 16
learning_rate = 1e-2
save_steps = 40
"""
RECIPES = {
    "single": ("text-classification", 'path = "single.csv"'),
    "pair": ("text-classification", 'path = "pair.jsonl"'),
    "multi": ("text-classification", 'path = "multi.jsonl"'),
    "value": ("text-classification", 'path = "value.csv"\nlabel_column = "score"\nproblem_type = "regression"'),
    "qa": ("question-answering", 'path = "qa.jsonl"\nmax_length = 24\nstride = 6'),
}


def json_lines(path, rows) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def table(path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Path(path).read_text())))


def question(i: int, filler: str = "") -> dict:
    """One of four has no answer; contexts are of many lengths, most of them longer than a window."""
    animal, place = ANIMALS[i % 5], PLACES[i // 5 % 4]
    context = filler + "it sings . " * (i % 7) + f"the {animal} lives in the {place} ." + " it sings ." * (i % 3)
    answers = {"text": [place], "answer_start": [context.index(place)]} if i % 4 else {"text": [], "answer_start": []}
    asked = f"where is the {animal} ?" if i % 4 else "who is the king ?"
    return {"id": f"q{i}", "question": asked, "context": context, "answers": answers}


def write_data() -> None:
    texts = [line.split(" at ")[0] + " far" * (i % 6) for i, line in enumerate(corpus(200).splitlines())]
    kinds = ["bird" if text.split()[1] in BIRDS else "beast" for text in texts]
    Path("single.csv").write_text("remark,label\n" + "".join(f"{t},{k}\n" for t, k in zip(texts, kinds, strict=True)))
    twins = [(ANIMALS[i % 5], ANIMALS[(i % 5 + i % 2) % 5], i) for i in range(160)]
    json_lines(
        "pair.jsonl",
        [
            {"id": i, "premise": f"the {a} met" + " far" * (i % 5), "hypothesis": f"{b} was met", "label": int(a == b)}
            for a, b, i in twins
        ],
    )
    json_lines("multi.jsonl", [{"text": t, "labels": sorted({a for a in ANIMALS if a in t})} for t in texts])
    Path("value.csv").write_text("text,score\n" + "".join(f"{t},{len(t) / 10}\n" for t in texts))
    json_lines("qa.jsonl", [question(i) for i in range(160)])
    Path("corpus.txt").write_text(corpus())


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with data and a finished run of every kind, a second each."""
    folder = tmp_path_factory.mktemp("home")
    recipes = {n: f'task = "{task}"\n{BERT}[data]\n{data}\n{TRAINER}' for n, (task, data) in RECIPES.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_data()
        for name, text in {**recipes, "masked": MASKED, "causal": CAUSAL}.items():
            Path(f"{name}.toml").write_text(text)
            verb = "finetune" if name in RECIPES else "pretrain"
            longer = ["trainer.max_steps=160"] if name == "qa" else []
            argv = [verb, f"{name}.toml", *longer, "--output-dir", name]
            done = CliRunner().invoke(app, argv, catch_exceptions=False)
            assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture
def place(home, tmp_path, monkeypatch) -> Path:
    """An empty working directory from which the runs and their data are `home/...`."""
    (tmp_path / "home").symlink_to(home)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def said(llmkit, place):
    """What a command line answers, as the objects on stdout."""

    def call(*argv: str) -> list[dict]:
        done = llmkit("predict", *argv)
        assert done.exit_code == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return call


@pytest.fixture
def refused(llmkit, place):
    """What a command line is refused with: exit code 2, nothing on stdout."""

    def call(*argv: str) -> str:
        done = llmkit("predict", *argv)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        return done.stderr

    return call


# ---- what each kind of model says ----------------------------------------------------------------------------------


def test_several_texts_are_labelled_in_their_order(said):
    texts = ["the hen saw 3 of the foxs far far", "the dog fed 1 of the hens far", "the cat met 2 of the dogs"]
    found = said("home/single", *texts)
    assert [row["text"] for row in found] == texts
    assert [row["label"] for row in found] == ["bird", "beast", "beast"]
    for row in found:
        assert list(row) == ["text", "label", "score", "scores"]
        assert row["score"] == row["scores"][row["label"]] == max(row["scores"].values()) > 0.9
        assert sum(row["scores"].values()) == pytest.approx(1, abs=1e-5)


def test_what_was_learned_is_told_again_and_the_gold_label_is_not_echoed(said):
    said("home/single", "--input", "home/single.csv", "--output", "out.csv")
    truth, found = table("home/single.csv"), table("out.csv")
    assert list(found[0]) == ["remark", "label", "score", "scores"]
    assert [row["remark"] for row in found] == [row["remark"] for row in truth]
    assert sum(a["label"] == b["label"] for a, b in zip(truth, found, strict=True)) > 0.95 * len(truth)
    assert json.loads(found[0]["scores"]).keys() == {"beast", "bird"}


def test_several_labels(said):
    found = said("home/multi", "the fox saw 0 of the owls", "the cat led 2 of the cats")
    assert [row["labels"] for row in found] == [["fox", "owl"], ["cat"]]
    for row in found:
        assert row["labels"] == [name for name, score in row["scores"].items() if score > 0.5]


def test_a_regression_gives_a_value(said):
    short, long = said("home/value", "the fox saw 0 of the hens", "the fox saw 0 of the hens far far far far far")
    assert list(short) == ["text", "value"]
    assert 1.5 < short["value"] < long["value"] < 5.5


def test_pairs_come_from_a_file_with_their_id(said):
    rows = [json.loads(line) for line in Path("home/pair.jsonl").read_text().splitlines()]
    found = said("home/pair", "--input", "home/pair.jsonl")
    for row, answer in zip(rows, found, strict=True):
        assert {key: answer[key] for key in ("id", "premise", "hypothesis")} == {k: row[k] for k in row if k != "label"}
        assert list(answer) == ["id", "premise", "hypothesis", "label", "score", "scores"]
        assert answer["label"] in ("0", "1")


def test_questions_are_answered_with_a_place_in_the_context_or_with_nothing(said):
    rows = [question(i) for i in range(40)]
    json_lines("ask.jsonl", [{key: row[key] for key in ("id", "question", "context")} for row in rows])
    found = said("home/qa", "--input", "ask.jsonl")
    right = 0
    for row, answer in zip(rows, found, strict=True):
        assert [answer[key] for key in ("id", "question", "context")] == [row["id"], row["question"], row["context"]]
        assert list(answer)[3:] == ["answer", "score", "start", "end", "n_best"]
        if answer["answer"]:
            assert row["context"][answer["start"] : answer["end"]] == answer["answer"]
        else:
            assert (answer["start"], answer["end"]) == (None, None)
        assert answer["n_best"][0] == {"text": answer["answer"], **{k: answer[k] for k in ("score", "start", "end")}}
        assert sum(each["score"] for each in answer["n_best"]) == pytest.approx(1, abs=1e-4)
        right += answer["answer"] == (row["answers"]["text"] or [""])[0]
    assert right > 0.9 * len(rows)
    assert {bool(answer["answer"]) for answer in found} == {True, False}


def test_an_answer_is_found_in_three_thousand_words_and_written_to_a_table(said):
    asked = [question(1, "it sings . " * 1000), question(4, "it sings . " * 1000)]
    json_lines("long.jsonl", asked)
    said("home/qa", "--input", "long.jsonl", "--output", "out.csv")
    there, nowhere = table("out.csv")
    assert len(there["context"].split()) > 3000
    assert there["answer"] == there["context"][int(there["start"]) : int(there["end"])] == "barn"
    assert (nowhere["answer"], nowhere["start"], nowhere["end"]) == ("", "", "")


def test_blanks_are_filled(said):
    one, two = said("home/masked", "the [MASK] saw 3", "the [MASK] saw 3 of the [MASK] .")
    assert list(one) == ["text", "filled", "tokens"]
    scores = [guess["score"] for guess in one["tokens"]]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    assert one["filled"] == f"the {one['tokens'][0]['token']} saw 3"
    assert [len(guesses) for guesses in two["tokens"]] == [5, 5]
    first, second = (guesses[0]["token"] for guesses in two["tokens"])
    assert two["filled"] == f"the {first} saw 3 of the {second} ."


def test_the_words_for_a_blank_are_those_of_plain_transformers(said):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("home/masked")
    model = AutoModelForMaskedLM.from_pretrained("home/masked").eval()
    read = tokenizer("the [MASK] saw 3", return_tensors="pt")
    with torch.inference_mode():
        scores = model(**read).logits[0, read["input_ids"][0].tolist().index(tokenizer.mask_token_id)].softmax(-1)
    for guess in said("home/masked", "the [MASK] saw 3")[0]["tokens"]:
        assert guess["score"] == pytest.approx(float(scores[tokenizer.convert_tokens_to_ids(guess["token"])]), abs=1e-5)


def test_blanks_are_filled_from_a_file_with_its_ids(said, refused):
    json_lines("ask.jsonl", [{"id": 7, "text": "the [MASK] saw"}, {"id": 8, "text": "a [MASK]"}])
    assert [(row["id"], row["text"]) for row in said("home/masked", "--input", "ask.jsonl")] == [
        (7, "the [MASK] saw"),
        (8, "a [MASK]"),
    ]
    json_lines("ask.jsonl", [{"id": 7, "content": "the [MASK] saw"}])
    assert "`ask.jsonl` has no column `text`" in refused("home/masked", "--input", "ask.jsonl")


def test_a_text_without_a_blank_or_with_one_out_of_reach_is_refused(refused):
    assert "text 2: no [MASK] in it" in refused("home/masked", "a [MASK]", "a fox")
    assert "text 1: [MASK] stands beyond the 32 tokens" in refused("home/masked", "far " * 40 + "[MASK]")


@pytest.mark.parametrize("name", [*RECIPES, "masked"])
def test_predictions_are_the_same_alone_in_a_batch_and_among_other_lengths(name, said):
    if name == "masked":
        rows = [{"text": line.replace("the", "[MASK]", 1)} for line in corpus(300).splitlines()]
    else:
        lines = Path(f"home/{name}.jsonl")
        rows = (
            [json.loads(row) for row in lines.read_text().splitlines()] if lines.exists() else table(f"home/{name}.csv")
        )
    rows = rows * 2 if name != "qa" else rows  # more than one chunk
    json_lines("all.jsonl", rows)
    together = said(f"home/{name}", "--input", "all.jsonl")
    assert len(together) == len(rows)
    for number in (0, 1, 6, 29):
        json_lines("one.jsonl", [rows[number]])
        alone = said(f"home/{name}", "--input", "one.jsonl")
        assert rounded(alone) == rounded([together[number]])
    json_lines("few.jsonl", [rows[number] for number in (29, 6, 1)])
    assert rounded(said(f"home/{name}", "--input", "few.jsonl")) == rounded([together[n] for n in (29, 6, 1)])


def rounded(found):
    """All that is not a number stays; numbers agree to 1e-5. Of the n best answers to a question the first three."""
    if isinstance(found, dict):
        return {key: rounded(value[:3] if key == "n_best" else value) for key, value in found.items()}
    if isinstance(found, list):
        return [rounded(each) for each in found]
    return pytest.approx(found, abs=1e-5) if isinstance(found, float) else found


# ---- files in and out ----------------------------------------------------------------------------------------------


def test_every_format_is_read_and_gives_the_same(said):
    texts = ["the hen saw 3 of the foxs", "the dog fed, 1 of the hens", "the owl met 2 of the dogs"]
    json_lines("a.jsonl", [{"remark": text} for text in texts])
    Path("a.json").write_text(json.dumps([{"remark": text} for text in texts]))
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with Path(name).open("w", newline="") as stream:
            csv.writer(stream, delimiter=delimiter).writerows([["remark"], *([text] for text in texts)])
    pyarrow.parquet.write_table(pyarrow.table({"remark": texts}), "a.parquet")
    Path("a.txt").write_text("\n\n".join(texts) + "\n")
    for name in ("a.csv", "a.jsonl", "a.txt"):
        Path(f"{name}.gz").write_bytes(gzip.compress(Path(name).read_bytes()))
    expected = [{**row, "remark": row["text"]} for row in said("home/single", *texts)]
    for name in ("a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.csv.gz", "a.jsonl.gz", "a.txt", "a.txt.gz"):
        key = "text" if ".txt" in name else "remark"
        found = said("home/single", "--input", name)
        assert next(iter(found[0])) == key, name
        assert rounded(found) == rounded([{k: row[k] for k in found[0]} for row in expected]), name


def test_stdout_json_lines_and_a_table_say_the_same(said, llmkit):
    printed = said("home/pair", "--input", "home/pair.jsonl")
    done = llmkit("predict", "home/pair", "--input", "home/pair.jsonl", "--output", "out.jsonl")
    assert (done.stdout, done.stderr) == ("", "160 rows -> out.jsonl\n")
    said("home/pair", "--input", "home/pair.jsonl", "--output", "OUT.CSV")
    assert [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()] == printed
    for line, row in zip(table("OUT.CSV"), printed, strict=True):
        assert line == {key: json.dumps(v) if isinstance(v, dict) else str(v) for key, v in row.items()}
    assert sorted(p.name for p in Path().iterdir()) == ["OUT.CSV", "home", "out.jsonl"]


def test_columns_are_found_by_the_name_they_had_and_by_their_role(said):
    json_lines("named.jsonl", [{"hypothesis": "fox was met", "premise": "the fox met", "text": "no", "label": 1}])
    json_lines("role.jsonl", [{"text_pair": "fox was met", "text": "the fox met", "label": 1}])
    (named,), (role,) = (said("home/pair", "--input", name) for name in ("named.jsonl", "role.jsonl"))
    assert (named["premise"], role["text"], role["text_pair"]) == ("the fox met", "the fox met", "fox was met")
    assert rounded(named["scores"]) == rounded(role["scores"])


def test_a_missing_column_is_named_with_its_file(refused):
    said = refused("home/pair", "--input", "home/single.csv")
    assert "`home/single.csv` has no column `premise`, `hypothesis`" in said
    assert "it has remark, label" in said


@pytest.mark.parametrize(("name", "columns"), [("pair", "premise, hypothesis"), ("qa", "question, context")])
def test_what_reads_two_texts_wants_a_file_and_says_with_which_columns(name, columns, refused):
    said = refused(f"home/{name}", "the fox met", "--output", "out.csv")
    assert f"reads 2 texts at once: {columns}" in said
    assert "--input FILE" in said
    Path("a.txt").write_text("the fox met\n")
    assert f"reads 2 texts at once: {columns}" in refused(f"home/{name}", "--input", "a.txt")
    assert not Path("out.csv").exists()


def test_a_row_without_an_id_does_not_shift_the_table(said):
    json_lines("a.jsonl", [{"id": 1, "remark": "the fox"}, {"remark": "the hen"}, {"remark": "the owl", "id": 3}])
    said("home/single", "--input", "a.jsonl", "--output", "out.csv")
    found = [(row["id"], row["remark"]) for row in table("out.csv")]
    assert found == [("1", "the fox"), ("", "the hen"), ("3", "the owl")]


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", "remark,label\n"), ("a.txt", "\n\n"), ("a.jsonl", ""), ("a.json", "[]")]
)
def test_from_an_empty_file_nothing_is_predicted_and_nothing_written(name, content, refused):
    Path(name).write_text(content)
    assert f"there are no rows in `{name}`" in refused("home/single", "--input", name, "--output", "out.csv")
    assert sorted(p.name for p in Path().iterdir()) == [name, "home"]


@pytest.mark.parametrize(
    ("broken", "said"), [('{"remark": \n', "line 501: not JSON"), ('{"rev": "a"}\n', "line 501: no `remark`")]
)
def test_a_broken_row_in_the_middle_leaves_no_half_output(broken, said, refused):
    rows = ['{"remark": "the fox"}\n'] * 600
    rows[500] = broken
    Path("a.jsonl").write_text("".join(rows))
    Path("out.csv").write_text("of yesterday\n")
    assert said in refused("home/single", "--input", "a.jsonl", "--output", "out.csv")
    assert Path("out.csv").read_text() == "of yesterday\n"
    assert sorted(p.name for p in Path().iterdir()) == ["a.jsonl", "home", "out.csv"]


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("a.csv", "--output is the file that --input reads"),
        ("link.csv", "--output is the file that --input reads"),
        ("none/out.csv", "there is no folder `none`"),
        ("out.txt", "ends in neither .jsonl nor .csv"),
        ("out.csv.gz", "ends in neither .jsonl nor .csv"),
        ("folder.csv", "`folder.csv` is a folder"),
    ],
)
def test_where_it_cannot_write_it_says_so_first(output, said, refused):
    Path("a.csv").write_text("remark\nthe fox\n")
    Path("link.csv").symlink_to("a.csv")
    Path("folder.csv").mkdir()
    assert said in refused("home/single", "--input", "a.csv", "--output", output)
    assert Path("a.csv").read_text() == "remark\nthe fox\n"


def test_there_is_one_source_of_rows(refused):
    assert "nothing to predict" in refused("home/single")
    assert "exclude one another" in refused("home/single", "the fox", "--input", "home/single.csv")
    assert "there is no file `none.csv`" in refused("home/single", "--input", "none.csv")
    assert "does not read `.toml` files" in refused("home/single", "--input", "home/single.toml")


@pytest.mark.parametrize("name", ["single", "masked"])
def test_rows_are_read_no_further_ahead_than_a_chunk(name, place):
    resolve_columns, predict_rows = (
        fill_mask.blank_filler("home/masked") if name == "masked" else prediction.row_predictor(*ARGUMENTS)
    )
    taken = 0

    def rows():
        nonlocal taken
        for number in range(3 * rows_io.CHUNK):
            taken += 1
            yield f"row {number}", {"text": f"the [MASK] saw {number}"}

    for count, predicted in enumerate(rows_io.predictions(rows(), None, resolve_columns, predict_rows), 1):
        assert predicted["text"] == f"the [MASK] saw {count - 1}"
        assert taken - count < rows_io.CHUNK
    assert count == 3 * rows_io.CHUNK


ARGUMENTS = ("home/single", "text-classification")


def test_ctrl_c_leaves_no_draft_behind(llmkit, place):
    json_lines("a.jsonl", [{"remark": f"the fox saw {i}"} for i in range(100_000)])

    def interrupt() -> None:
        while not (drafts := list(Path().glob(".out.jsonl.*"))) or not drafts[0].stat().st_size:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    done = llmkit("predict", "home/single", "--input", "a.jsonl", "--output", "out.jsonl")
    assert done.exit_code == 130
    assert sorted(p.name for p in Path().iterdir()) == ["a.jsonl", "home"]


def test_an_id_that_json_does_not_know_is_written_as_text(place):
    import datetime

    stream = io.StringIO()
    rows_io._line(stream, {"id": datetime.date(2026, 1, 2), "label": "ö"})
    assert stream.getvalue() == '{"id": "2026-01-02", "label": "ö"}\n'


# ---- which model ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_inside_a_run_knows_its_columns_and_labels(said):
    json_lines("a.jsonl", [{"note": "seen at ten", "remark": "the hen saw 1 of the dogs"}])
    (last,), (run,) = (said(m, "--input", "a.jsonl") for m in ("home/single/checkpoint-80", "home/single"))
    assert rounded(last) == rounded(run)
    assert run["label"] == "bird"
    (earlier,) = said("home/single/checkpoint-40", "--input", "a.jsonl")
    assert rounded(earlier["scores"]) != rounded(run["scores"])


def test_a_run_that_is_not_finished_names_its_checkpoint(said, refused, home):
    shutil.copytree(home / "single", "half")
    record = json.loads(Path("half/run.json").read_text())
    Path("half/run.json").write_text(json.dumps({**record, "status": "stopped"}))
    told = refused("half", "the fox")
    assert "`half` is not finished" in told
    assert "checkpoint: half/checkpoint-80" in told
    assert said("half/checkpoint-80", "the hen saw 1 of the dogs")[0]["label"] == "bird"
    for checkpoint in Path("half").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    assert "--resume" in refused("half", "the fox")


def test_a_model_that_is_no_run_reads_text_and_text_pair(said, refused, home):
    """As one from the Hub: its config says what it is, nothing says what its columns were called."""
    for name in ("single", "pair", "qa"):
        shutil.copytree(home / name, name, ignore=shutil.ignore_patterns("run.json", "recipe.toml", "checkpoint-*"))
    json_lines("a.jsonl", [{"text": "the hen saw 1 of the dogs", "label": "?"}])
    assert said("single", "the hen saw 1 of the dogs")[0]["label"] == "bird"
    assert said("single", "--input", "a.jsonl")[0]["label"] == "bird"
    json_lines("a.jsonl", [{"text": "the fox met", "text_pair": "fox was met"}])
    assert rounded(said("pair", "--input", "a.jsonl")) == rounded(said("home/pair", "--input", "a.jsonl"))
    json_lines("a.jsonl", [{"one": "the fox met", "two": "fox was met"}])
    assert "call it `text`" in refused("pair", "--input", "a.jsonl")
    assert "question, context" in refused("qa", "where ?")


def test_a_causal_model_is_for_generate(refused):
    assert "llmkit generate --model home/causal" in refused("home/causal", "the fox")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("bare", "no file named model.safetensors"),
        ("empty", "the model `empty` could not be loaded"),
        ("home/none", "the model `home/none`"),
        ("runs/none", "there is no model at `runs/none`"),
        ("home/single.csv", "`home/single.csv` is a file"),
        ("headless", "(BertModel) has no head that llmkit predicts with"),
    ],
)
def test_what_is_no_model_is_refused(model, said, refused, home, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("empty").mkdir()
    for name in ("bare", "headless"):
        Path(name).mkdir()
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(home / "single" / file, name)
    config = json.loads(Path("headless/config.json").read_text())
    Path("headless/config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    assert said in refused(model, "the fox")


@pytest.mark.parametrize(("name", "text"), [("single", "the fox"), ("masked", "the [MASK]")])
def test_a_model_that_diverged_is_refused(name, text, refused, home):
    shutil.copytree(home / name, "broken", ignore=shutil.ignore_patterns("checkpoint-*"))
    weights = load_file("broken/model.safetensors")
    save_file({key: values * float("nan") for key, values in weights.items()}, "broken/model.safetensors")
    assert "not finite numbers" in refused("broken", text)
