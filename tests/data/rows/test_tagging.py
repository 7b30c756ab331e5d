"""Rows of tagging as other tools write them: a word a row, spans of characters, lists in any writing."""

import json

import pytest

from llmkit.data.rows import splits, tagging
from llmkit.data.rows.reader import Unusable
from llmkit.data.rows.spans import spans_in, tag_words
from llmkit.errors import UserError
from llmkit.recipe.data_tables import TaggingData

SAID = (["Anna", "lives", "in", "New", "York"], ["B-PER", "O", "O", "B-LOC", "I-LOC"])
TEXT = "Anna lives in New York"


def tables(path, text=None, **keys):
    if text is not None:
        path.write_text(text if isinstance(text, str) else "".join(json.dumps(row) + "\n" for row in text))
    return splits.tables(TaggingData(path=str(path), **keys), 0, tagging)


def read(found):
    return [tagging.read_words(row, found.columns) for _, row in found.train.read()]


def refused(path, text, **keys):
    with pytest.raises(UserError) as caught:
        tables(path, text, **keys)
    return caught.value


def words_of(*sentences):
    """Rows of (number of the sentence, word, tag)."""
    return [(n, word, tag) for n, said in enumerate(sentences) for word, tag in zip(*said, strict=True)]


OTHER = (["Bob", "saw", "Rome"], ["B-PER", "O", "B-LOC"])
THIRD = (["Yes", "!"], ["O", "O"])


# --- one word a row ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("sentence_id,words,labels", "{n},{word},{tag}"),
        ("Sentence_ID, Word ,TAG", "s{n},{word},{tag}"),
        ("sent_id,token,pos,ner", "{n},{word},NN,{tag}"),
        ("number,word,tag", "{n},{word},{tag}"),  # told by what it holds
        ("sent,form,mark", "{n},{word},{tag}"),
        ("sent,a,b", "{n},{word},{tag}"),
    ],
)
def test_sentences_are_the_rows_of_one_id(tmp_path, header, line):
    rows = [line.format(n=n, word=word, tag=tag) for n, word, tag in words_of(SAID, OTHER, THIRD)]
    found = tables(tmp_path / "a.csv", "\n".join([header, *rows]) + "\n")
    assert read(found) == [SAID, OTHER, THIRD]
    assert [place.rpartition(", ")[2] for place, _ in found.train.read()] == ["line 2", "line 7", "line 10"]
    assert any("one word per row; sentences are the rows of one `" in note for note in found.notes)


def test_an_id_that_stands_at_the_first_word_alone(tmp_path):
    """As in Kaggle's ner_dataset.csv."""
    rows, last = ["Sentence #,Word,POS,Tag"], None
    for n, word, tag in words_of(SAID, OTHER, THIRD):
        rows.append(f"{f'Sentence: {n + 1}' if n != last else ''},{word},X,{tag}")
        last = n
    found = tables(tmp_path / "a.csv", "\n".join(rows) + "\n")
    assert found.columns == {"tokens": "Word", "tags": "Tag", "sentence": "Sentence #"}
    assert read(found) == [SAID, OTHER, THIRD]
    first = next(row for _, row in found.train.read())
    assert (first["Sentence #"], first["POS"]) == ("Sentence: 1", ["X"] * 5)


def test_ids_that_begin_anew_in_each_document(tmp_path):
    rows = [("a", 1, *pair) for pair in zip(*SAID, strict=True)] + [
        ("b", 1, *pair) for pair in zip(*OTHER, strict=True)
    ]
    text = "doc_id,sent_id,word,tag\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    found = tables(tmp_path / "a.csv", text)
    assert found.columns["sentence"] == "doc_id + sent_id"
    assert read(found) == [SAID, OTHER]
    named = tables(tmp_path / "a.csv", text, sentence_column=["doc_id", "sent_id"])
    assert read(named) == [SAID, OTHER]


@pytest.mark.parametrize("between", [",\n", "\n", "\n\n"])
def test_empty_rows_and_lines_end_sentences(tmp_path, between):
    parts = ["".join(f"{word},{tag}\n" for word, tag in zip(*said, strict=True)) for said in (SAID, OTHER, THIRD)]
    found = tables(tmp_path / "a.csv", "word,tag\n" + between.join(parts))
    assert read(found) == [SAID, OTHER, THIRD]


def test_words_without_anything_that_tells_sentences_apart_are_refused(tmp_path):
    rows = [{"word": word, "tag": tag, "pos": "X"} for _, word, tag in words_of(SAID, OTHER)]
    found = refused(tmp_path / "a.jsonl", rows)
    assert "column `word` holds one word per row, and no column tells sentences apart" in found.message
    assert "data.sentence_column" in found.hint
    assert 'write its words as a list: ["word"]' in found.hint
    rows = [{"id": number, "word": word, "tag": tag} for number, (_, word, tag) in enumerate(words_of(SAID, OTHER))]
    found = refused(tmp_path / "a.jsonl", rows, sentence_column="id")
    assert "nearly all sentences would have one word" in found.message
    alone = [{"tokens": [row["word"]], "tags": [row["tag"]]} for row in rows]
    assert len(read(tables(tmp_path / "b.jsonl", alone))) == 8


def test_two_columns_that_could_tell_sentences_apart_are_asked_for(tmp_path):
    rows = [
        {"x": n // 2, "y": n, "word": word, "tag": tag} for n, word, tag in words_of(SAID, OTHER, THIRD, SAID, OTHER)
    ]
    found = refused(tmp_path / "a.jsonl", rows)
    assert "`x` and `y` could both tell sentences apart" in found.message
    assert len(read(tables(tmp_path / "a.jsonl", rows, sentence_column="Y"))) == 5


def test_an_id_that_comes_back_is_said(tmp_path):
    rows = [{"sentence_id": n, "word": w, "tag": t} for n, w, t in words_of(SAID, OTHER)]
    rows += [{"sentence_id": 0, "word": w, "tag": t} for w, t in zip(*THIRD, strict=True)]
    found = tables(tmp_path / "a.jsonl", rows)
    assert read(found) == [SAID, OTHER, THIRD]
    (note,) = [note for note in found.notes if "was used before" in note]
    assert note.startswith("1 sentence begins with an id that was used before, such as")
    assert "line 9" in note


def test_sentences_do_not_run_from_one_file_into_the_next(tmp_path):
    for name, said in (("a", SAID), ("b", OTHER)):
        lines = [f"1,{word},{tag}\n" for word, tag in zip(*said, strict=True)]
        (tmp_path / f"{name}.csv").write_text("sentence_id,word,tag\n" + "".join(lines))
    found = tables(tmp_path, data_files=["a.csv", "b.csv"])
    assert read(found) == [SAID, OTHER]
    assert not any("was used before" in note for note in found.notes)


def test_a_sentence_with_a_word_that_cannot_be_read_is_left_out_whole(tmp_path):
    lines = [json.dumps({"s": n, "word": w, "tag": t}) for n, w, t in words_of(SAID, OTHER, THIRD, SAID)]
    lines[6] = lines[6][:-3]
    try:
        found = tables(tmp_path / "a.jsonl", "\n".join(lines) + "\n", sentence_column="s")
    except UserError as problem:  # a reader that stops at such a line
        assert "line 7" in str(problem)
        return
    assert read(found) == [SAID, THIRD, SAID]
    assert found.record["skipped"] == {"train": {"a word that cannot be read": 1}}


def test_a_validation_file_may_have_sentences_where_the_other_has_words(tmp_path):
    lines = [f"{n},{word},{tag}\n" for n, word, tag in words_of(SAID, OTHER)]
    (tmp_path / "train.csv").write_text("sentence_id,word,tag\n" + "".join(lines))
    (tmp_path / "dev.jsonl").write_text(json.dumps({"word": THIRD[0], "tag": THIRD[1]}) + "\n")
    found = tables(tmp_path)
    assert read(found) == [SAID, OTHER]
    assert [tagging.read_words(row, found.columns) for _, row in found.validation["dev"].read()] == [THIRD]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps({"word": w, "tag": "O"}) + "\n" for w in THIRD[0]))
    with pytest.raises(UserError, match=r"dev\.jsonl.*no column tells sentences apart"):
        tables(tmp_path)


def test_words_to_predict_for_are_grouped_where_a_column_tells_sentences_apart():
    from llmkit.data.rows.table import Rows

    def opened(rows):
        return Rows(lambda: ((f"row {n}", row) for n, row in enumerate(rows, 1)), tuple(rows[0]), {}, "", "`a`")

    data = TaggingData(path="-")
    rows = opened([{"sentence_id": n, "word": word} for n, word, _ in words_of(SAID, OTHER)])
    found = tagging.reshape(rows, {"tokens": "word"}, data)
    assert [tagging.read_words(row, {"tokens": "word"})[0] for _, row in found.read()] == [SAID[0], OTHER[0]]
    alone = opened([{"word": word} for _, word, _ in words_of(SAID)])
    assert tagging.reshape(alone, {"tokens": "word"}, data) is alone


# --- spans of characters ----------------------------------------------------------------------------------------------

LAYOUTS = {
    "doccano": {"text": TEXT, "label": [[0, 4, "PER"], [14, 22, "LOC"]]},
    "doccano, labels": {"id": 3, "text": TEXT, "labels": [[14, 22, "LOC"], [0, 4, "PER"]], "Comments": []},
    "doccano, entities": {
        "id": 1,
        "text": TEXT,
        "relations": [],
        "entities": [
            {"id": 0, "label": "PER", "start_offset": 0, "end_offset": 4},
            {"id": 1, "label": "LOC", "start_offset": 14, "end_offset": 22},
        ],
    },
    "prodigy": {
        "text": TEXT,
        "tokens": [
            {"text": word, "start": TEXT.index(word), "end": TEXT.index(word) + len(word), "id": n, "ws": True}
            for n, word in enumerate(SAID[0])
        ],
        "spans": [
            {"start": 0, "end": 4, "token_start": 0, "token_end": 0, "label": "PER"},
            {"start": 14, "end": 22, "token_start": 3, "token_end": 4, "label": "LOC"},
        ],
        "answer": "accept",
    },
    "label studio": {
        "id": 1,
        "data": {"text": TEXT},
        "annotations": [
            {
                "id": 7,
                "was_cancelled": False,
                "result": [
                    {"value": {"start": 0, "end": 4, "text": "Anna", "labels": ["PER"]}, "type": "labels"},
                    {"value": {"start": 14, "end": 22, "text": "New York", "labels": ["LOC"]}, "type": "labels"},
                    {"value": {"choices": ["good"]}, "type": "choices"},
                    {"type": "relation", "from_id": "a", "to_id": "b"},
                ],
            }
        ],
    },
    "label studio, min": {
        "text": TEXT,
        "label": [
            {"start": 0, "end": 4, "text": "Anna", "labels": ["PER"]},
            {"start": 14, "end": 22, "text": "New York", "labels": ["LOC"]},
        ],
    },
    "cluener": {"text": TEXT, "label": {"PER": {"Anna": [[0, 3]]}, "LOC": {"New York": [[14, 21]]}}},
    "hub": {
        "text": TEXT,
        "label": "news",
        "entities": [{"start": 0, "end": 4, "type": "PER"}, {"start": 14, "end": 22, "entity_group": "LOC"}],
    },
    "spacy": {"text": TEXT, "entities": [[0, 4, "PER"], [14, 22, "LOC"]]},
    "dataturks": {
        "content": TEXT,
        "annotation": [
            {"label": ["PER"], "points": [{"start": 0, "end": 3, "text": "Anna"}]},
            {"label": ["LOC"], "points": [{"start": 14, "end": 21, "text": "New York"}]},
        ],
        "extras": None,
    },
    "odd names": {"note": TEXT, "found": [[0, 4, "PER"], [14, 22, "LOC"]], "source": "web"},
}
KEYS = {"odd names": {}}


@pytest.mark.parametrize("tool", LAYOUTS)
def test_spans_become_tags_of_words(tmp_path, tool):
    found = tables(tmp_path / "a.jsonl", [LAYOUTS[tool]] * 3)
    assert read(found) == [SAID] * 3
    assert any("spans of characters become tags of words" in note for note in found.notes)
    assert set(found.columns) == {"text", "tags"}
    assert list(tagging.texts(next(found.train.read())[1], found.columns)) == [" ".join(SAID[0])]


def test_spans_in_cells_of_a_csv(tmp_path):
    text = 'text,label\n"Anna saw Rome","[[0, 4, ""PER""], [9, 13, ""LOC""]]"\n"Bob","[{\'start\': 0, \'end\': 3, '
    text += "'label': 'PER'}]\"\nYes!,[]\nNo,\n"
    assert read(tables(tmp_path / "a.csv", text)) == [
        (["Anna", "saw", "Rome"], ["B-PER", "O", "B-LOC"]),
        (["Bob"], ["B-PER"]),
        (["Yes", "!"], ["O", "O"]),
        (["No"], ["O"]),
    ]


def test_rows_that_annotators_did_not_accept_are_left_out(tmp_path):
    rows = [{**LAYOUTS["prodigy"], "answer": answer} for answer in ("accept", "reject", "ignore", "accept", "reject")]
    found = tables(tmp_path / "a.jsonl", rows)
    assert len(read(found)) == 2
    (note,) = [note for note in found.notes if "`answer`" in note]
    assert note.startswith("3 rows left out: `answer` is not `accept`, such as ")
    assert "line 2" in note
    assert found.record == {}  # nothing is wrong with them


@pytest.mark.parametrize(
    ("shift", "given", "said"),
    [
        ((0, 0), True, None),
        ((0, -1), True, "the end of a span is its last character"),
        ((1, 0), True, "characters are counted from 1, and the end"),
        ((1, 1), True, "characters are counted from 1"),
        ((0, -1), False, "the end of a span is its last character"),
        ((1, 1), False, "characters are counted from 1"),
    ],
)
def test_what_offsets_mean_is_seen_in_the_whole_column(tmp_path, shift, given, said):
    def span(start, end, label):
        told = {"text": TEXT[start:end]} if given else {}
        return {"start": start + shift[0], "end": end + shift[1], "label": label, **told}

    found = tables(tmp_path / "a.jsonl", [{"text": TEXT, "spans": [span(0, 4, "PER"), span(14, 22, "LOC")]}] * 5)
    assert read(found) == [SAID] * 5
    assert any(said in note for note in found.notes) if said else not any(";" in note for note in found.notes)
    assert found.record == {}


def test_chinese_is_tagged_character_by_character(tmp_path):
    row = {"text": "叶老桂在北京。", "label": {"name": {"叶老桂": [[0, 2]]}, "address": {"北京": [[4, 5]]}}}
    found = tables(tmp_path / "a.json", json.dumps([row], ensure_ascii=False))
    assert read(found) == [(list("叶老桂在北京。"), ["B-name", "I-name", "I-name", "O", "B-address", "I-address", "O"])]


def good(number):
    return {"text": TEXT, "spans": [{"start": 0, "end": 4, "label": "PER", "text": "Anna"}], "id": number}


@pytest.mark.parametrize(
    ("text", "spans", "tags", "mended"),
    [
        (TEXT, [{"start": 1, "end": 5, "label": "PER", "text": "Anna"}], "B-PER O O O O", "a span occurs elsewhere"),
        ("X-rays", [[2, 5, "A"]], "O O B-A O", "a word is cut in two"),
        ("Anna ", [[0, 5, "PER"]], "B-PER", None),
        ("Anna", [[0, 4, "PER"], [0, 4, "PER"]], "B-PER", None),
        ("Anna Bob", [[0, 4, "PER"], [5, 8, "PER"]], "B-PER B-PER", None),
    ],
)
def test_what_can_be_mended_is_mended_and_counted(tmp_path, text, spans, tags, mended):
    found = tables(tmp_path / "a.jsonl", [*map(good, range(5)), {"text": text, "spans": spans}])
    assert read(found)[5][1] == tags.split()
    kinds = found.record.get("mended", {}).get("train", {})
    assert [kind for kind in kinds if kind.startswith(mended or "?")] == list(kinds)
    assert sum(kinds.values()) == (mended is not None)
    assert "".join(read(found)[5][0]) == text.replace(" ", "")  # nothing is lost


@pytest.mark.parametrize(
    ("text", "spans", "kind"),
    [
        ("Anna Anna", [{"start": 1, "end": 5, "label": "PER", "text": "Anna"}], "a span is not where its offsets say"),
        ("Anna", [{"start": 0, "end": 4, "label": "PER", "text": "Bob"}], "a span is not where its offsets say"),
        ("Anna Bob", [[0, 8, "A"], [5, 8, "B"]], "spans that overlap"),
        ("Anna", [[0, 4, "A"], [0, 4, "B"]], "spans that overlap"),
        ("Anna", [[0, 9, "PER"]], "a span outside its text"),
        ("Anna", [[-1, 2, "PER"]], "a span outside its text"),
        ("Anna", [[2, 2, "PER"]], "a span that marks no word"),
        ("Anna", [[0, 4, ""]], "a span without a label"),
        ("Anna", [{"start": 0, "end": 4, "labels": ["A", "B"]}], "a span with several labels"),
        ("Anna", [{"start": None, "end": 4, "label": "A"}], "a span without offsets"),
        ("Anna", "PER", "not a list of spans"),
        ("", [], "no words"),
        (None, [], "no words"),
        (5, [], "no text in `text`"),
    ],
)
def test_one_odd_row_is_left_out_and_counted(tmp_path, text, spans, kind):
    found = tables(tmp_path / "a.jsonl", [*map(good, range(5)), {"text": text, "spans": spans}])
    assert len(read(found)) == 5
    assert found.record["skipped"] == {"train": {kind: 1}}


def test_annotations_of_several_that_differ(tmp_path):
    def annotation(end, **more):
        return {"result": [{"value": {"start": 0, "end": end, "text": TEXT[:end], "labels": ["PER"]}}], **more}

    def row(*annotations):
        return {"data": {"text": TEXT}, "annotations": list(annotations)}

    rows = [
        row(annotation(4)),
        row(annotation(4), annotation(4)),
        row(annotation(4), annotation(10, was_cancelled=True)),
    ]
    found = tables(tmp_path / "a.json", json.dumps([*rows, row(annotation(4), annotation(10)), row()]))
    assert found.columns == {"text": "data.text", "tags": "annotations"}
    assert len(read(found)) == 3
    assert found.record["skipped"] == {"train": {"annotations that differ": 1, "not annotated": 1}}


def test_a_fault_of_the_whole_column_is_refused_with_the_key(tmp_path):
    rows = [{"text": "Anna Bob", "spans": [[0, 8, "A"], [5, 8, "B"]]}] * 10
    found = refused(tmp_path / "a.jsonl", [good(0), *rows])
    assert "10 of 11 rows cannot be used: spans that overlap" in found.message
    assert "data.max_skipped_fraction = 0.91" in found.hint


def test_the_recipe_may_name_the_types_of_spans_alone(tmp_path):
    data = TaggingData(path="-", label_names=["PER", "LOC"])
    assert tagging.names_in_recipe(data, {"text": "text"}) == ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    assert tagging.names_in_recipe(data, {"tokens": "tokens"}) == ("PER", "LOC")
    found = tables(tmp_path / "a.jsonl", [LAYOUTS["doccano"]] * 5, label_names=["PER", "LOC"])
    assert len(read(found)) == 5


def test_what_is_no_list_of_spans():
    for value in (["O", "B-X"], [0, 1], "B-X O", 5, [{"a": 1}], [[0, 1]], {"a": 1}, [["a", "b", "c"]], 0.5):
        assert spans_in(value) is None
    assert spans_in([]) == spans_in(None) == spans_in("") == []
    with pytest.raises(Unusable, match="spans are expected"):
        tag_words("Anna", ["O"])


# --- lists of words and tags ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"Tokens": SAID[0], "NER_Tags": SAID[1]}, ("Tokens", "NER_Tags")),
        ({"token": SAID[0], "label": SAID[1]}, ("token", "label")),
        ({"sentence": TEXT, "tags": " ".join(SAID[1])}, ("sentence", "tags")),
        ({"Sentence #": "1", "Sentence": TEXT, "POS": str(["X"] * 5), "Tag": str(SAID[1])}, ("Sentence", "Tag")),
        ({"text": TEXT, "tokens": SAID[0], "ner_tags": SAID[1], "entities": [[0, 4, "PER"]]}, ("tokens", "ner_tags")),
        ({"a": SAID[0], "b": SAID[1], "c": "web"}, ("a", "b")),
    ],
)
def test_columns_are_found_by_name_and_by_what_they_hold(tmp_path, row, columns):
    found = tables(tmp_path / "a.jsonl", [row] * 5)
    assert (found.columns["tokens"], found.columns["tags"]) == columns
    assert read(found) == [SAID] * 5


def test_odd_rows_are_left_out_and_counted_by_kind(tmp_path):
    fine = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}] * 3
    odd = [(["a", "b"], ["O"]), ([], []), (None, ["O"])]
    found = tables(tmp_path / "a.jsonl", [*fine, *({"tokens": words, "tags": tags} for words, tags in odd)])
    assert len(read(found)) == 3
    kinds = {"words and tags differ in number": 1, "no words": 1, "not a list of words or tags": 1}
    assert found.record["skipped"] == {"train": kinds}
    odd = [(["a"], [None]), (["a"], [{}]), (["a\ud83d"], ["O"])]
    found = tables(tmp_path / "b.jsonl", [*fine, *({"tokens": words, "tags": tags} for words, tags in odd)])
    kinds = {"a word without a tag": 1, "an invalid tag": 1, "half a character": 1}
    assert found.record["skipped"] == {"train": kinds}


def test_a_tag_that_the_recipe_does_not_name_leaves_its_row_out(tmp_path):
    rows = [{"tokens": ["a", "b"], "tags": [0, 1]}] * 5 + [{"tokens": ["a"], "tags": [tag]} for tag in (2, -1, "B-Y")]
    found = tables(tmp_path / "a.jsonl", rows, label_names=["O", "B-X"])
    assert len(read(found)) == 5
    kinds = {"a tag out of range": 2, "a tag that is not in data.label_names": 1}
    assert found.record["skipped"] == {"train": kinds}


def test_rows_are_drawn_by_types_of_entities():
    names = [["B-X", "I-X", "O"], ["I-X", "O", "B-X"], ["B-X", "B-Y", "-100"], ["O", "O"], ["N"]]
    from llmkit.data.rows.table import Rows

    rows = Rows(lambda: iter(()), (), {}, "", "`a`")
    found, unusable = tagging.strata(names, rows, {"tokens": "tokens", "tags": "tags"}, TaggingData(path="-"))
    assert found == ["X", "X", "Y", None, "N"]
    assert not unusable
    named = Rows(lambda: iter(()), (), {"tags": ("O", "B-X", "I-X")}, "", "`a`")
    found, _ = tagging.strata([["1", "2"], ["2"]], named, {"tags": "tags"}, TaggingData(path="-"))
    assert found == ["X", "X"]
