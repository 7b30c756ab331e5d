"""Small models of every kind that `llmkit predict` knows, and rows for them."""

import csv
import io
import json
from pathlib import Path

import pytest
from conftest import MASKED, REST, corpus

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


def rounded(found):
    """All that is not a number stays; numbers agree to 1e-5. Of the n best answers to a question the first three."""
    if isinstance(found, dict):
        return {key: rounded(value[:3] if key == "n_best" else value) for key, value in found.items()}
    if isinstance(found, list):
        return [rounded(each) for each in found]
    return pytest.approx(found, abs=1e-5) if isinstance(found, float) else found
