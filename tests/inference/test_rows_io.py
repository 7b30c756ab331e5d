"""Rows in and out: every format, their columns and ids, and no half-written output."""

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
from predictions import json_lines, rounded, table

from llmkit.data.output import _line
from llmkit.inference import fill_mask, rows_io
from llmkit.inference import predict as prediction


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
    expected = said("home/single", *texts)
    for name in ("a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.csv.gz", "a.jsonl.gz", "a.txt", "a.txt.gz"):
        assert rounded(said("home/single", "--input", name)) == rounded(expected), name
        said("home/single", "--input", name, "--output", "out.jsonl", "--overwrite")
        column = "text" if ".txt" in name else "remark"
        assert [json.loads(line)[column] for line in Path("out.jsonl").read_text().splitlines()] == texts


def test_stdout_json_lines_and_a_table_say_the_same(said, llmkit):
    printed = said("home/pair", "--input", "home/pair.jsonl")
    done = llmkit("predict", "home/pair", "--input", "home/pair.jsonl", "--output", "out.jsonl")
    assert (done.stdout, done.stderr) == ("", "160 rows -> out.jsonl\n")
    said("home/pair", "--input", "home/pair.jsonl", "--output", "OUT.CSV")
    written, rows = json_rows("out.jsonl"), json_rows("home/pair.jsonl")
    renamed = [{"predicted_label" if key == "label" else key: v for key, v in row.items()} for row in printed]
    assert written == [row | answer for row, answer in zip(rows, renamed, strict=True)]
    for line, row in zip(table("OUT.CSV"), written, strict=True):
        cells = {key: json.dumps(v) if isinstance(v, dict) else str(v) for key, v in row.items()}
        assert line == {**cells, "error": ""}
    assert sorted(p.name for p in Path().iterdir()) == ["OUT.CSV", "home", "out.jsonl"]


def test_columns_are_found_by_the_name_they_had_and_by_their_role(said):
    json_lines("named.jsonl", [{"hypothesis": "fox was met", "premise": "the fox met", "text": "no", "label": 1}])
    json_lines("role.jsonl", [{"text_pair": "fox was met", "text": "the fox met", "label": 1}])
    (named,), (role,) = (said("home/pair", "--input", name) for name in ("named.jsonl", "role.jsonl"))
    assert rounded(named["scores"]) == rounded(role["scores"])


def json_rows(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


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


def test_a_column_that_comes_late_is_kept_and_decides_what_our_own_keys_are_called(said):
    """In both formats, and in rows of the first chunk too."""
    rows = [{"remark": f"the fox {i}", "score": i} for i in range(300)]
    json_lines("a.jsonl", [*rows, {"remark": "the owl", "label": "?", "error": "none", "predicted_label": 7}])
    for name in ("out.jsonl", "out.csv"):
        said("home/single", "--input", "a.jsonl", "--output", name)
        found = json_rows(name) if name.endswith("jsonl") else table(name)
        own = ["predicted_predicted_label", "predicted_score", "scores"]
        assert list(found[0])[:8] == ["remark", "score", "label", "error", "predicted_label", *own]
        assert all(row["predicted_predicted_label"] in ("bird", "beast") for row in found)
        assert [str(row["score"]) for row in found[:300]] == [str(i) for i in range(300)]
        assert (found[-1]["label"], found[-1]["error"], str(found[-1]["predicted_label"])) == ("?", "none", "7")


@pytest.mark.parametrize("output", ["out.csv", "out.jsonl"])
def test_a_column_called_error_is_no_error_of_ours(output, said, llmkit):
    json_lines("a.jsonl", [{"remark": "the fox", "error": "a"}, {"remark": 7, "error": "b"}])
    done = llmkit("predict", "home/single", "--input", "a.jsonl", "--output", output)
    assert "1 of 2 rows could not be read" in done.stderr
    first, second = table(output) if output.endswith(".csv") else json_rows(output)
    assert (first["error"], second["error"], first["label"] in ("bird", "beast")) == ("a", "b", True)
    assert "not text" in second["predicted_error"]
    assert not first.get("predicted_error")


def test_how_a_file_was_read_is_said_once(said, llmkit):
    Path("a.csv").write_text("remark,label\nthe fox,a\nremark,label\nthe owl,b\n")
    done = llmkit("predict", "home/single", "--input", "a.csv", "--output", "out.csv")
    assert done.exit_code == 0
    assert done.stderr.count("the header again") == 1
    assert [row["remark"] for row in table("out.csv")] == ["the fox", "the owl"]


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", "remark,label\n"), ("a.txt", "\n\n"), ("a.jsonl", ""), ("a.json", "[]")]
)
def test_from_an_empty_file_nothing_is_predicted_and_nothing_written(name, content, refused):
    Path(name).write_text(content)
    assert f"there are no rows in `{name}`" in refused("home/single", "--input", name, "--output", "out.csv")
    assert sorted(p.name for p in Path().iterdir()) == [name, "home"]


@pytest.mark.parametrize(
    ("broken", "reason"), [('{"remark": 7}\n', "holds int, not text"), ('{"rev": "a"}\n', "no `remark`")]
)
@pytest.mark.parametrize("output", ["out.csv", "out.jsonl"])
@pytest.mark.parametrize("number", [0, 500])
def test_a_row_that_cannot_be_read_has_an_error_in_its_place(broken, reason, output, number, said, llmkit):
    rows = ['{"remark": "the fox"}\n'] * 600
    rows[number] = broken
    Path("a.jsonl").write_text("".join(rows))
    done = llmkit("predict", "home/single", "--input", "a.jsonl", "--output", output)
    assert done.exit_code == 0, done.stderr
    assert "warning: 1 of 600 rows could not be read; their `error` says why" in done.stderr
    read = table(output) if output.endswith(".csv") else json_rows(output)
    assert len(read) == 600
    assert reason in read[number]["error"]
    assert not read[number].get("label")
    assert all(row["label"] and not row.get("error") for row in (*read[:number], *read[number + 1 :]))


def test_a_file_of_nothing_but_errors_is_written_too(said, llmkit):
    Path("a.jsonl").write_text('{"remark": 1}\n{"remark": 2}\n')
    done = llmkit("predict", "home/single", "--input", "a.jsonl", "--output", "out.csv")
    assert done.exit_code == 0, done.stderr
    assert [row["remark"] for row in table("out.csv")] == ["1", "2"]


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("a.csv", "--output is the file that --input reads"),
        ("link.csv", "--output is the file that --input reads"),
        ("none/out.csv", "there is no folder `none`"),
        ("out.txt", "ends in neither .jsonl nor .csv"),
        ("out.csv.gz", "ends in neither .jsonl nor .csv"),
        ("folder.csv", "`folder.csv` is a folder"),
        ("full.csv", "`full.csv` already exists"),
        ("to-full.csv", "`to-full.csv` already exists"),
        ("/proc/out.csv", "`/proc/out.csv` cannot be written"),
        (f"{'n' * 250}.csv", "cannot be written: File name too long"),
        ("to-nowhere.csv", "`to-nowhere.csv` cannot be written"),
        ("gs://bucket/out.csv", "`gs://bucket/out.csv` is an address, and llmkit writes only to paths on this machine"),
    ],
)
def test_where_it_cannot_write_it_says_so_first(output, said, refused):
    Path("a.csv").write_text("remark\nthe fox\n")
    Path("link.csv").symlink_to("a.csv")
    Path("folder.csv").mkdir()
    Path("full.csv").write_text("mine\n")
    Path("to-full.csv").symlink_to("full.csv")
    Path("to-nowhere.csv").symlink_to("nowhere/a.csv")
    before = sorted(Path().iterdir())
    assert said in refused("home/single", "--input", "a.csv", "--output", output)
    assert Path("a.csv").read_text() == "remark\nthe fox\n"
    assert Path("full.csv").read_text() == "mine\n"
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "home/single", "--input", "a.csv"),
        ("evaluate", "home/single"),
        ("generate", "--model", "home/single", "--input", "a.txt"),
        ("generate", "--chat", "--model", "home/single", "--input", "a.txt"),
    ],
)
def test_no_verb_overwrites_a_file_unasked_nor_loads_a_model_first(words, llmkit, place, monkeypatch):
    for module in ("llmkit.models.loading.load_model", "llmkit.inference.generate._load"):
        monkeypatch.setattr(module, lambda *_, **__: pytest.fail("a model is loaded"))
    Path("a.csv").write_text("remark\nthe fox\n")
    Path("a.txt").write_text("the fox\n")
    shutil.copy("home/single/metrics.jsonl", "metrics.jsonl")
    done = llmkit(*words, "--output", "metrics.jsonl")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "error: --output: `metrics.jsonl` already exists" in done.stderr
    assert "hint: name another file, or add --overwrite" in done.stderr
    assert Path("metrics.jsonl").read_bytes() == Path("home/single/metrics.jsonl").read_bytes()
    assert "--overwrite needs --output" in llmkit(*words, "--overwrite").stderr


def test_there_is_one_source_of_rows(refused):
    assert "nothing to predict" in refused("home/single")
    assert "cannot be combined" in refused("home/single", "the fox", "--input", "home/single.csv")
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

    found = rows_io.predictions(rows(), None, resolve_columns, predict_rows)
    for count, (row, said) in enumerate(found, 1):
        assert row["text"] == f"the [MASK] saw {count - 1}"
        assert "error" not in said
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
    _line(stream, {"id": datetime.date(2026, 1, 2), "label": "ö"})
    assert stream.getvalue() == '{"id": "2026-01-02", "label": "ö"}\n'
