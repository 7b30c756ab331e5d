"""Predicting: what each kind of model says of rows, and which models it takes."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import corpus
from predictions import RECIPES, json_lines, question, rounded, table
from safetensors.torch import load_file, save_file


def test_several_texts_are_labelled_in_their_order(said):
    texts = ["the hen saw 3 of the foxs far far", "the dog fed 1 of the hens far", "the cat met 2 of the dogs"]
    found = said("home/single", *texts)
    assert [row["label"] for row in found] == ["bird", "beast", "beast"]
    for row in found:
        assert list(row) == ["label", "score", "scores"]
        assert row["score"] == row["scores"][row["label"]] == max(row["scores"].values()) > 0.9
        assert sum(row["scores"].values()) == pytest.approx(1, abs=1e-5)


def test_what_was_learned_is_told_again_beside_the_label_of_the_data(said):
    said("home/single", "--input", "home/single.csv", "--output", "out.csv")
    truth, found = table("home/single.csv"), table("out.csv")
    assert list(found[0]) == ["remark", "label", "predicted_label", "score", "scores", "error"]
    assert [row["remark"] for row in found] == [row["remark"] for row in truth]
    assert [row["label"] for row in found] == [row["label"] for row in truth]
    assert sum(row["label"] == row["predicted_label"] for row in found) > 0.95 * len(truth)
    assert json.loads(found[0]["scores"]).keys() == {"beast", "bird"}


def test_several_labels(said):
    found = said("home/multi", "the fox saw 0 of the owls", "the cat led 2 of the cats")
    assert [row["labels"] for row in found] == [["fox", "owl"], ["cat"]]
    for row in found:
        assert row["labels"] == [name for name, score in row["scores"].items() if score > 0.5]


def test_a_regression_gives_a_value(said):
    short, long = said("home/value", "the fox saw 0 of the hens", "the fox saw 0 of the hens far far far far far")
    assert list(short) == ["value"]
    assert 1.5 < short["value"] < long["value"] < 5.5


def test_pairs_come_from_a_file_and_are_written_with_all_their_columns(said):
    rows = [json.loads(line) for line in Path("home/pair.jsonl").read_text().splitlines()]
    said("home/pair", "--input", "home/pair.jsonl", "--output", "out.jsonl")
    found = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    for row, answer in zip(rows, found, strict=True):
        assert {key: answer[key] for key in row} == row
        assert list(answer) == ["id", "premise", "hypothesis", "label", "predicted_label", "score", "scores"]
        assert answer["predicted_label"] in ("0", "1")


def test_questions_are_answered_with_a_place_in_the_context_or_with_nothing(said):
    rows = [question(i) for i in range(40)]
    json_lines("ask.jsonl", [{key: row[key] for key in ("id", "question", "context")} for row in rows])
    found = said("home/qa", "--input", "ask.jsonl")
    right = 0
    for row, answer in zip(rows, found, strict=True):
        assert list(answer) == ["answer", "score", "start", "end", "n_best"]
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
        ("headless", "(BertModel) has no head that llmkit can predict with"),
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
