"""A corpus with planted faults goes in; what comes out, what is reported, and what is kept in the cache."""

# ruff: noqa: RUF001  (full-width punctuation is what is tested)

import json
import pickle
import random
import shutil

import pytest
from pydantic import ValidationError

from llmkit.data.cleaning import pipeline, shards
from llmkit.data.engines import Workers
from llmkit.data.text import token_cache
from llmkit.data.text.documents import Documents
from llmkit.errors import UserError
from llmkit.recipe.cleaning import Clean

_WORDS = (
    "river stone bridge town market bread morning people weather winter garden letter window mountain harbour "
    "teacher village summer kitchen island forest journey candle mirror shadow silver winding narrow quiet "
    "distant golden"
)
WORDS = _WORDS.split()
CHARACTERS = [chr(0x4E00 + number) for number in range(3000)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for every test."""
    for module in (token_cache, pipeline):
        monkeypatch.setattr(module, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache"


class Texts:
    """Documents that count how often they are read."""

    def __init__(self, texts, fingerprint="texts"):
        self.texts = texts
        self.readings = 0
        self.documents = Documents(self.read, f"{fingerprint} {texts!r}", "`test`")

    def read(self):
        self.readings += 1
        yield from self.texts


def run(texts, table, against=None):
    cleaned, report = pipeline.clean(
        Texts(texts).documents, table, Texts(against).documents if against else None, "training"
    )
    return list(cleaned), report


def sentence(rng):
    glue = rng.choices("the be to of and that have with".split(), k=5)  # noqa: SIM905
    return "The " + " ".join(rng.sample([*rng.choices(WORDS, k=9), *glue, str(rng.randint(1, 999))], 15)) + "."


def english(rng):
    return "\n".join(" ".join(sentence(rng) for _ in range(3)) for _ in range(3))


def chinese(rng):
    return "\n".join("".join(rng.choices(CHARACTERS, k=60)) + "的人是。" for _ in range(3))


ALL = Clean(
    html=True,
    repair=True,
    control_characters=True,
    whitespace=True,
    boilerplate=True,
    c4=True,
    gopher=True,
    gopher_repetition=True,
    personal_data=("email", "iban", "card", "ip", "phone"),
    min_words=50,
    max_words=2000,
    exact_duplicates=True,
    overlap=True,
    near_duplicates=True,
)


def planted(rng, num_documents):
    """Documents: (text, fault, what is to become of it or None), and ten evaluation documents."""
    evaluation = [(english if number % 2 else chinese)(rng) for number in range(10)]
    corpus, originals = [], []
    for number in range(num_documents):
        text = (english if rng.random() < 0.6 else chinese)(rng)
        fault = [None, "html", "repair", "control_characters", "whitespace", "boilerplate", "c4", "others"][number % 8]
        if fault == "others":
            fault = ["personal_data", "length", "overlap", "exact", "near", "gopher"][number // 8 % 6]
        after, written = text, text
        if fault == "html":
            written = "<div>" + text.replace("\n", "<br>\n") + "</div><script>x</script>"
        elif fault == "repair":
            after = text + "\nThe café of the old garçon was à côté, and it is there still."
            written = after.encode().decode("latin-1")
        elif fault == "control_characters":
            written = text.replace("e", "e\u200b").replace("的", "的\ufeff") + "\x00"
        elif fault == "whitespace":
            written = "  " + text.replace("\n", " \r\n\u3000").replace(" ", " \u00a0")
        elif fault == "boilerplate":
            written = "Home | About | Contact\n" + text + "\n版权所有 © 2020 公司"
        elif fault == "c4":
            written, after = text + "\nif (x) { return; } is what it says here.", None
        elif fault == "gopher":
            written, after = "\n".join(f"- {line}" for line in text.split("\n")), None
        elif fault == "personal_data":
            after = text.replace("\n", "\nWrite to <EMAIL> or call <PHONE> or pay with <CARD> today.\n", 1)
            written = after.replace("<EMAIL>", f"a{number}@example.com").replace("<PHONE>", "+1 202 456 1111")
            written = written.replace("<CARD>", "4111 1111 1111 1111")
        elif fault == "length":
            written, after = "The only one that is. And it is very short of words. It is the end of it.", None
        elif fault == "overlap":
            line = rng.choice(evaluation).split("\n")[1]
            written, after = f"{text}\n{line}", None
        elif fault == "exact" and originals:
            written, after = rng.choice(originals), None
        elif fault == "near" and originals:
            written, after = (
                rng.choice(originals).replace("。", f"{number}。", 1).replace("The ", f"A{number} ", 1),
                None,
            )
        else:
            originals.append(text)
        corpus.append((written, fault, after))
    return corpus, evaluation


def test_the_planted_corpus_comes_out_clean_and_every_step_is_reported():
    corpus, evaluation = planted(random.Random(0), 480)
    cleaned, report = run([text for text, _, _ in corpus], ALL, evaluation)
    wanted = [after for _, _, after in corpus if after is not None]
    right = len(set(cleaned) & set(wanted))
    assert len(wanted) > 300
    assert right / len(wanted) >= 0.95  # recall
    assert right / len(cleaned) >= 0.95  # precision
    assert [text for text in cleaned if text in set(wanted)] == [
        text for text in wanted if text in set(cleaned)
    ]  # in order

    faults = [fault for _, fault, _ in corpus]
    steps = report["steps"]
    assert list(steps) == [
        *("html", "repair", "normal_form", "control_characters", "whitespace", "boilerplate", "c4", "gopher"),
        *("gopher_repetition", "personal_data", "length", "exact_duplicates", "overlap", "near_duplicates"),
    ]
    for name in ("html", "repair", "control_characters", "whitespace", "boilerplate", "personal_data"):
        assert steps[name]["changed"] == pytest.approx(faults.count(name), rel=0.05), name
    for fault, name in (
        ("c4", "c4"),
        ("overlap", "overlap"),
        ("exact", "exact_duplicates"),
        ("near", "near_duplicates"),
    ):
        assert steps[name]["dropped"] == pytest.approx(faults.count(fault), rel=0.05), name
    assert steps["gopher"]["dropped"] == faults.count("gopher") + faults.count("length")  # short ones go there
    assert steps["gopher"]["rules"] == {"bullet lines": faults.count("gopher"), "few words": faults.count("length")}

    going = report["in"]
    assert going == 480
    for step in steps.values():
        assert step["in"] == going
        assert step["out"] == step["in"] - step["dropped"]
        assert len(step["examples"]) == min(3, step["changed"] + step["dropped"])
        assert all(0 < len(example) <= 120 for example in step["examples"])
        going = step["out"]
    assert going == report["out"] == len(cleaned)
    assert report["characters_out"] == sum(map(len, cleaned))


def test_nothing_is_done_where_nothing_is_asked(cache):
    source = Texts(["  <p>a</p>  ", "  <p>a</p>  "])
    cleaned, report = pipeline.clean(source.documents, Clean(), None, "training")
    assert cleaned is source.documents
    assert report == {}
    assert pipeline.lines(report) == []
    assert pipeline.clean_streamed(source.documents, Clean()) is source.documents
    assert not cache.exists()


def test_one_step_changes_nothing_but_its_own():
    text = "  <b>café</b> a@b.com\u200b  "
    assert run([text, text], Clean(control_characters=True))[0] == ["  <b>café</b> a@b.com  "] * 2
    assert run([text, text], Clean(exact_duplicates=True))[0] == [text]


def test_the_normal_form_is_nfc_with_repair_and_otherwise_what_is_asked():
    text = "Cafe\u0301 ＡＢ"
    assert run([text], Clean(repair=True))[0] == ["Café ＡＢ"]
    assert run([text], Clean(repair=True, normal_form="NFKC"))[0] == ["Café AB"]
    assert run([text], Clean(whitespace=True))[0] == [text]


# ---- the cache -----------------------------------------------------------------------------------------------------

STRANGE = ["line\none\r\n", "\u2028 \x00 \x85 中文 😀", '"quoted" \\n {}', "half \ud800 pair", "last"]


def test_every_character_survives_and_the_next_run_reads_no_documents():
    source = Texts(STRANGE)
    table = Clean(exact_duplicates=True)
    cleaned, report = pipeline.clean(source.documents, table, None, "training")
    assert list(cleaned) == list(cleaned) == STRANGE
    assert source.readings == 1
    again, same = pipeline.clean(source.documents, table, None, "training")
    assert source.readings == 1
    assert list(again) == STRANGE
    assert same == report
    assert again.fingerprint == cleaned.fingerprint != source.documents.fingerprint
    assert again.source == "`test`"


def test_other_documents_steps_and_evaluation_data_are_other_entries(tmp_path):
    texts, overlap = ["a b c d", "e f g h"], Clean(overlap=True, overlap_ngram=2)
    (tmp_path / "stop.txt").write_text("a\n")
    stop = Clean(stop_words=str(tmp_path / "stop.txt"))
    first = pipeline.clean(Texts(texts).documents, stop, None, "training")[0]
    (tmp_path / "stop.txt").write_text("b\n")
    second = pipeline.clean(Texts(texts).documents, stop, None, "training")[0]
    assert (next(iter(first)), next(iter(second))) == ("b c d", "a c d")
    fingerprints = {first.fingerprint, second.fingerprint}
    fingerprints.add(pipeline.clean(Texts([*texts, "x"]).documents, stop, None, "training")[0].fingerprint)
    fingerprints.add(pipeline.clean(Texts(texts).documents, Clean(whitespace=True), None, "training")[0].fingerprint)
    assert run(texts, overlap, ["a b x"])[0] == ["e f g h"]
    assert run(texts, overlap, ["e f x"])[0] == ["a b c d"]
    assert len(fingerprints) == 4


@pytest.mark.parametrize("damage", ["cut", "changed", "text gone", "report cut", "report gone"])
def test_what_is_damaged_is_built_again_and_says_so(cache, damage, capsys):
    source = Texts(["one two", "three four", "three four"])
    table = Clean(exact_duplicates=True)
    pipeline.clean(source.documents, table, None, "training")
    text, report = next(cache.glob("*/text.jsonl")), next(cache.glob("*/report.json"))
    if damage == "cut":
        text.write_bytes(text.read_bytes()[:-3])
    elif damage == "changed":
        text.write_bytes(text.read_bytes().replace(b"two", b"tow"))
    elif damage == "report cut":
        report.write_text(report.read_text()[:-3])
    else:
        (text if damage == "text gone" else report).unlink()
    assert capsys.readouterr().err == ""
    cleaned, report = pipeline.clean(source.documents, table, None, "training")
    assert "was damaged" in capsys.readouterr().err
    assert source.readings == 2
    assert list(cleaned) == ["one two", "three four"]
    assert report["steps"]["exact_duplicates"]["dropped"] == 1


def test_two_texts_that_were_swapped_in_the_cache_are_not_taken_for_one_another(cache, capsys):
    texts, table = (["one two", "one two"], ["three four"]), Clean(exact_duplicates=True)
    before = [list(pipeline.clean(Texts(text).documents, table, None, "training")[0]) for text in texts]
    first, second = (file.parent for file in cache.glob("*/text.jsonl"))
    first.rename(cache / "aside")
    second.rename(first)
    (cache / "aside").rename(second)
    assert [list(pipeline.clean(Texts(text).documents, table, None, "training")[0]) for text in texts] == before
    assert capsys.readouterr().err.count("was damaged") == 2


def test_a_run_that_fails_leaves_nothing_behind(cache):
    def read():
        yield "one"
        raise UserError("line 2 is not UTF-8")

    with pytest.raises(UserError, match="line 2"):
        pipeline.clean(Documents(read, "x", "`x`"), Clean(whitespace=True), None, "training")
    assert [entry for entry in cache.iterdir() if entry.suffix != ".lock"] == []


# ---- in shards -----------------------------------------------------------------------------------------------------


def backwards(function, items):
    """An engine that does the last item first, each as another process would get it."""
    given = [pickle.loads(pickle.dumps((function, item))) for item in items]
    done = [call(item) for call, item in reversed(given)]
    return iter(reversed(done))


def files_in(folder):
    return {file.name: file.read_bytes() for file in folder.glob("*/*")}


def test_shards_and_workers_change_no_byte(cache):
    corpus, evaluation = planted(random.Random(3), 120)
    texts, table = [text for text, _, _ in corpus], ALL.model_copy(update={"near_threshold": 0.6})
    wanted = None
    for workers in (Workers(), Workers(shard_size=4_000), Workers(backwards, 9_000)):
        pipeline.clean(Texts(texts).documents, table, Texts(evaluation).documents, "training", workers)
        found = files_in(cache)
        wanted = wanted or found
        assert found == wanted
        assert {file.suffix for file in cache.iterdir()} == {"", ".lock"}  # nothing else is left
        shutil.rmtree(cache)


@pytest.mark.parametrize("damage", [None, "changed", "gone", "cut"])
def test_cleaning_that_was_interrupted_goes_on_and_damaged_shards_are_cleaned_again(cache, monkeypatch, capsys, damage):
    corpus, _ = planted(random.Random(4), 60)
    texts, table = [text for text, _, _ in corpus], Clean(whitespace=True, exact_duplicates=True, near_duplicates=True)
    pipeline.clean(Texts(texts).documents, table, None, "training", Workers(shard_size=4_000))
    wanted = files_in(cache)
    shutil.rmtree(cache)
    cleaned, run_steps = [], shards.run_steps

    def interrupted(*words):
        cleaned.append(words)
        if len(cleaned) == 4:
            raise KeyboardInterrupt
        return run_steps(*words)

    monkeypatch.setattr(shards, "run_steps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipeline.clean(Texts(texts).documents, table, None, "training", Workers(shard_size=4_000))
    text = sorted(cache.glob("*.work/clean/*/text.jsonl"))[1]
    if damage == "gone":
        shutil.rmtree(text.parent)
    elif damage is not None:
        text.write_bytes(b"x" * len(text.read_bytes()) if damage == "changed" else b"")
    number = len(texts_in_shards(texts, 4_000))
    pipeline.clean(Texts(texts).documents, table, None, "training", Workers(shard_size=4_000))
    assert len(cleaned) - 4 == number - 3 + (damage is not None)
    assert files_in(cache) == wanted
    assert "going on with what was cleaned before" in capsys.readouterr().err


def test_what_a_process_left_that_was_killed_at_the_very_end_is_removed(cache, monkeypatch):
    table = Clean(exact_duplicates=True)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "discard", lambda work: None)
        pipeline.clean(Texts(["a", "a"]).documents, table, None, "training")
    assert list(cache.glob("*.work"))
    assert list(pipeline.clean(Texts(["a", "a"]).documents, table, None, "training")[0]) == ["a"]
    assert not list(cache.glob("*.work"))


def texts_in_shards(texts, size):
    """The texts of each shard of so many characters."""
    cut, held = [[]], 0
    for text in texts:
        if held >= size:
            cut, held = [*cut, []], 0
        cut[-1].append(text)
        held += len(text) + 1
    return cut


# ---- the report ----------------------------------------------------------------------------------------------------


def test_the_report_repeats_no_personal_data():
    """Neither where it is masked, nor where its line or its document is dropped, nor where it was hidden before."""
    secret = [
        "jo.doe@example.com",
        "jo.doe&#64;example.com",
        "jo.doe\u200b@example.com",
        "jo\u200b.doe&#64;example.com",
    ]
    texts = [f"<p>Mail {datum} to ask\u200b me</p>" for datum in secret]
    texts += [f"Home | About\nShare on Facebook\nClick here: {datum}\nIt is text." for datum in secret]
    texts += [f"<b>No</b> {'{'} {datum}" for datum in secret]
    texts += ["<p>Good\u200b text.</p>"]
    table = ALL.model_copy(update={"gopher": False, "gopher_repetition": False, "min_words": None, "overlap": False})
    table = table.model_copy(update={"c4_min_sentences": 1, "c4_min_words_per_line": 1, "near_duplicates": False})
    for c4 in (True, False):
        cleaned, report = run(texts, table.model_copy(update={"c4": c4}))
        written = json.dumps(report, ensure_ascii=False)
        assert "example" not in written.replace('"examples"', "")
        assert "doe" not in written
        assert ("<EMAIL>" in written) is not c4  # with c4 the lines, that have no full stop, go
        assert "Good" in written
        assert not any("doe" in text for text in cleaned)


def test_examples_show_the_place_of_the_change():
    _, report = run(["x" * 500 + " \u200b" + "y" * 500], Clean(control_characters=True))
    (example,) = report["steps"]["control_characters"]["examples"]
    before, after = example.split(" -> ")
    assert before.startswith("xxxx")
    assert "\\u200by" in before
    assert "\\u200b" not in after


def test_lines_say_what_each_step_did_in_a_hundred_columns():
    corpus, evaluation = planted(random.Random(1), 240)
    _, report = run([text for text, _, _ in corpus], ALL, evaluation)
    lines = pipeline.lines(report)
    assert lines[0].startswith(f"cleaning of training: 240 documents in, {report['out']} out, with ")
    assert max(map(len, lines)) <= 100
    assert f"  html               {report['steps']['html']['changed']} changed" in lines
    assert any(line.startswith("  gopher ") and "bullet lines 5" in line for line in lines)
    assert not any(line.startswith("  normal_form") for line in lines)  # it did nothing


def test_a_long_list_of_rules_is_cut_between_two():
    step = {"changed": 0, "dropped": 9, "rules": {f"a rule by the name of {n}": 1 for n in range(9)}}
    report = {
        "documents": "training",
        "in": 1,
        "out": 1,
        "characters_in": 1,
        "characters_out": 1,
        "steps": {"c4": step},
    }
    line = pipeline.lines(report)[1]
    assert len(line) <= 100
    assert line.endswith("name of 1 1, ...)")


# ---- one document at a time ----------------------------------------------------------------------------------------


def test_streamed_text_is_what_the_cache_would_hold_and_is_not_kept(cache):
    corpus, _ = planted(random.Random(2), 96)
    table = pipeline.without_comparisons(ALL)
    assert (table.exact_duplicates, table.overlap, table.near_duplicates) == (False, False, False)
    source = Texts([text for text, _, _ in corpus])
    streamed = pipeline.clean_streamed(source.documents, table)
    assert source.readings == 0
    first = list(streamed)
    assert not cache.exists()
    assert first == list(streamed) == run(source.texts, table)[0]
    assert streamed.fingerprint != source.documents.fingerprint


@pytest.mark.parametrize("key", ["exact_duplicates", "overlap", "near_duplicates"])
def test_a_stream_cannot_be_compared_with_itself(key):
    with pytest.raises(UserError, match=rf"data\.clean\.{key} needs all documents"):
        pipeline.clean_streamed(Texts(["a"]).documents, Clean(**{key: True}))


# ---- mistakes ------------------------------------------------------------------------------------------------------


def test_overlap_without_validation_data_and_a_corpus_without_rest_are_mistakes():
    with pytest.raises(UserError, match=r"data\.clean\.overlap needs validation data"):
        run(["a"], Clean(overlap=True))
    for _ in range(2):  # the second time out of the cache
        with pytest.raises(UserError, match="cleaning removes all 2 training documents") as caught:
            run(["a", "b"], Clean(min_words=2, whitespace=True))
        assert caught.value.hint == "the step length drops the most: loosen or unset it"
        assert caught.value.details == ("length             2 dropped (few words 2)",)


@pytest.mark.parametrize(
    ("keys", "library", "hint"),
    [
        ({"near_duplicates": True}, "rensa", "pip install rensa"),
        ({"presidio": True}, "presidio-analyzer", "pip install 'llmkit[presidio]'"),
    ],
)
def test_a_library_that_is_missing_is_named(monkeypatch, keys, library, hint):
    version = pipeline.metadata.version

    def without(name):
        if name == library:
            raise pipeline.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(pipeline.metadata, "version", without)
    with pytest.raises(UserError, match=f"needs the package {library}") as caught:
        run(["a"], Clean(**keys))
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"personal_data": ["email", "name"]}, '"name" is not one of email, iban, card, ip, phone'),
        ({"languages": ["english"]}, "ISO 639-1"),
        ({"personal_data": ["phone"], "phone_regions": ["us"]}, "ISO 3166"),
        ({"boilerplate_patterns": ["("]}, "is not a valid regular expression"),
        ({"gopher_repetition": True, "gopher_max_top_ngrams": [0.1]}, "must be 3 numbers, not 1"),
        ({"c4_min_sentences": 2}, "has no effect without `c4`"),
        ({"personal_data_tag": "x"}, "has no effect without `personal_data` or `presidio`"),
        ({"near_threshold": 0.9, "near_duplicates": False}, "has no effect without `near_duplicates`"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        Clean(**keys)


def test_a_table_that_is_written_out_whole_can_be_read_again():
    for table in (Clean(), ALL, Clean(near_duplicates=True, near_threshold=0.7)):
        assert Clean(**table.model_dump()) == table
