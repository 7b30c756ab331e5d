"""A task is suggested by what the first rows of a file hold."""

import json

import pytest

from llmkit.data.suggest import PRETRAINING, suggest


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"review": "good", "sentiment": "pos"}, "text-classification"),
        ({"text": "good", "label": 1}, "text-classification"),
        ({"premise": "a", "hypothesis": "b", "label": "neutral"}, "text-classification"),
        ({"tokens": ["a"], "ner_tags": ["O"]}, "token-classification"),
        ({"sentence #": "1", "Word": "a", "POS": "DT", "Tag": "O"}, "token-classification"),
        ({"text": "Ann sleeps", "label": [[0, 3, "PER"]]}, "token-classification"),
        ({"text": "Ann sleeps", "spans": [{"start": 0, "end": 3, "label": "PER"}]}, "token-classification"),
        ({"text": "a song", "label": ["happy", "loud"]}, "text-classification"),
        ({"question": "who?", "context": "Ann", "answers": {"text": ["Ann"]}}, "question-answering"),
        ({"context": "Ann", "qas": [{"question": "who?"}]}, "question-answering"),
        ({"messages": [{"role": "user", "content": "a"}]}, "chat"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "chat"),
        ({"instruction": "a", "input": "", "output": "b"}, "chat"),
        ({"prompt": "a", "completion": "b"}, "chat"),
        ({"question": "a", "answer": "b"}, "chat"),
        ({"question": "a", "context": "c", "choices": ["x", "y"], "answer": 0}, "multiple-choice"),
        ({"sent1": "a", "ending0": "x", "ending1": "y", "label": 0}, "multiple-choice"),
        ({"question": "a", "A": "x", "B": "y", "answer": "A"}, "multiple-choice"),
        ({"question": {"stem": "a", "choices": [{"text": "x", "label": "A"}]}, "answerKey": "A"}, "multiple-choice"),
        ({"question": "is it?", "passage": "a", "answer": True}, "text-classification"),
        ({"query": "who?", "passage": "Ann", "answer": "Ann", "start": 0}, "question-answering"),
        ({"plot": "Ann", "question": "who?", "answers": ["Ann"]}, "question-answering"),
        ({"id": 1, "text": "a", "target": 0}, "text-classification"),
        ({"document": "a", "summary": "b"}, "seq2seq"),
        ({"source": "a", "target": "b"}, "seq2seq"),
        ({"translation": {"en": "a", "de": "b"}}, "seq2seq"),
        ({"en": "a", "de": "b"}, "seq2seq"),
        ({"text": "a"}, PRETRAINING),
    ],
)
def test_columns_show_the_task(tmp_path, row, task):
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    assert suggest(str(tmp_path / "a.jsonl")).task == task
    assert suggest(str(tmp_path)).task == task


def test_a_question_and_an_answer_come_with_the_columns_to_name(tmp_path):
    (tmp_path / "a.csv").write_text("Question,Answer\na,b\n")
    assert suggest(str(tmp_path / "a.csv")).settings == (
        "data.prompt_column=Question",
        "data.completion_column=Answer",
    )


def test_text_files_are_for_pretraining_and_a_folder_a_class_for_classification(tmp_path):
    for folder in ("cats", "dogs"):
        (tmp_path / "classes" / folder).mkdir(parents=True)
        (tmp_path / "classes" / folder / "1.txt").write_text("a")
    for folder in ("train", "test"):
        (tmp_path / "splits" / folder).mkdir(parents=True)
        (tmp_path / "splits" / folder / "1.txt").write_text("a")
    assert suggest(str(tmp_path / "classes")).task == "text-classification"
    assert suggest(str(tmp_path / "classes" / "cats")).task == PRETRAINING
    assert suggest(str(tmp_path / "splits")).task == PRETRAINING


def test_a_file_of_tags_is_for_tagging(tmp_path):
    (tmp_path / "a.conll").write_text("Ann B-PER\nsleeps O\n\n")
    assert suggest(str(tmp_path / "a.conll")).task == "token-classification"


def test_a_folder_with_a_split_and_a_class_for_each_text_is_for_classification(tmp_path):
    for folder in ("train/pos", "train/neg", "test/pos", "test/neg"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.txt").write_text("a")
    assert suggest(str(tmp_path)).task == "text-classification"


@pytest.mark.parametrize(
    ("line", "task", "settings"),
    [
        ("a fox {i}\t{mood}\n", "text-classification", ("data.format=tsv", "data.header=false")),
        ("__label__{mood} a fox {i}\n", "text-classification", ("data.format=fasttext",)),
        ("fox O\nAnn B-{mood}\n\n", "token-classification", ("data.format=conll",)),
        ('{{"question": "a?", "choices": ["{mood}", "b"], "answer": 0}}\n', "multiple-choice", ("data.format=jsonl",)),
        ("a fox {i}, {mood}\n", PRETRAINING, ()),
    ],
)
@pytest.mark.parametrize("name", ["train.txt", "train.label"])
def test_a_file_is_known_by_its_lines_where_its_name_does_not_tell(name, line, task, settings, tmp_path):
    (tmp_path / name).write_text("".join(line.format(i=i, mood=("sad", "glad")[i % 2]) for i in range(30)))
    if name.endswith(".txt") or settings:
        assert (suggest(str(tmp_path)).task, suggest(str(tmp_path)).settings) == (task, settings)
        assert suggest(str(tmp_path / name)).settings == settings


@pytest.mark.parametrize("content", [b"", b"text,label\n", b"\xff\xfe\x00", b'text,label\n"a'])
def test_what_cannot_be_read_stops_nobody(tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content)
    assert suggest(str(tmp_path / "a.csv")).task == "text-classification"
