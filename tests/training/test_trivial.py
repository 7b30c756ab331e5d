"""Every result beside the trivial one: each task's, computed here from the rows alone; and what is said of it."""

import json
import math
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sacrebleu
from conftest import CAUSAL, corpus
from transformers import AutoTokenizer

from llmkit.recipe import load
from llmkit.tasks.trivial import Comparison
from llmkit.training import trivial
from llmkit.training.assemble import assemble

BERT = """
[model]
name = "base"
[data]
path = "rows"
"""
TRAINER = """
[trainer]
max_steps = 2
per_device_train_batch_size = 8
learning_rate = 1e-3
logging_steps = 1
"""
SCRATCH = """
[model.config]
model_type = "bart"
encoder_layers = 1
decoder_layers = 1
encoder_attention_heads = 2
decoder_attention_heads = 2
encoder_ffn_dim = 32
decoder_ffn_dim = 32
d_model = 16
max_position_embeddings = 64
[tokenizer]
type = "wordpiece"
vocab_size = 300
[data]
path = "rows"
"""


@pytest.fixture
def train(base, tmp_path, monkeypatch, llmkit):
    """`train(recipe, training rows, rows held out)`: one run; its record, and what it said."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(base)

    def call(recipe, rows, held_out, *words):
        (tmp_path / "rows").mkdir(exist_ok=True)
        for name, part in (("train", rows), ("validation", held_out)):
            lines = part if isinstance(part, str) else "".join(json.dumps(row) + "\n" for row in part)
            (tmp_path / "rows" / f"{name}.{'txt' if isinstance(part, str) else 'jsonl'}").write_text(lines)
        (tmp_path / "recipe.toml").write_text(recipe + TRAINER * ("[trainer]" not in recipe))
        command = "pretrain" if isinstance(rows, str) else "finetune"
        done = llmkit(command, "recipe.toml", *words, "--output-dir", "run")
        assert done.exit_code == 0, done.stderr
        return json.loads((tmp_path / "run/run.json").read_text()), done.stderr

    return call


def values(record):
    return {key.removeprefix("eval_"): each["value"] for key, each in record["trivial"]["metrics"].items()}


def witten_bell(counts, size):
    """(label) -> its loss in nats."""
    kinds, total = len(counts), sum(counts.values())
    if kinds == size:
        return lambda label: -math.log(counts[label] / total)
    new = kinds / (size - kinds)
    return lambda label: -math.log(counts.get(label, new) / (total + kinds))


def labelled(number, labels, shift=0):
    return [{"text": f"the fox saw {i + shift} of the hens", "label": labels[i % len(labels)]} for i in range(number)]


def test_the_most_frequent_class(train, llmkit):
    rows, held_out = labelled(60, ["good", "bad", "good"]), labelled(40, ["good", "bad"], 100)
    record, said = train(f'task = "text-classification"{BERT}', rows, held_out)
    found = values(record)
    assert found["accuracy"] == 0.5 and found["matthews_correlation"] == 0
    assert found["f1"] == pytest.approx(2 * 20 / 60)  # of "good", the second class by name
    assert found["loss"] == pytest.approx(-(math.log(2 / 3) + math.log(1 / 3)) / 2)
    assert record["trivial"]["metrics"]["eval_accuracy"]["answer"] == 'always "good"'
    assert record["metrics"].keys() >= {f"eval_{key}" for key in found}
    shown = re.search(r'^ +eval_accuracy ([\d.]+) \(always "good": 0.5000\)$', said, re.MULTILINE)
    assert shown and float(shown[1]) == pytest.approx(record["metrics"]["eval_accuracy"], abs=1e-4)
    assert '| always "good": 0.5000 |' in Path("run/README.md").read_text()
    # Of a finished model: the rows that are evaluated may be others.
    others = [row | {"label": "good"} for row in held_out[:10]] + held_out
    Path("others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others))
    evaluated = llmkit("evaluate", "run", "data.path=others.jsonl")
    assert json.loads(evaluated.stdout)["trivial"]["eval_accuracy"] == pytest.approx(30 / 50)
    assert '(always "good": 0.6000)' in evaluated.stderr
    # Of a run of before nothing is said.
    del record["trivial"]
    Path("run/run.json").write_text(json.dumps(record))
    assert "trivial" not in json.loads(llmkit("evaluate", "run").stdout)


def test_the_mean_of_a_regression(train):
    rows = [row | {"label": i % 7 / 2 + 0.25} for i, row in enumerate(labelled(70, ["-"]))]
    held_out = [row | {"label": i % 5 / 2 + 0.25} for i, row in enumerate(labelled(40, ["-"], 100))]
    record, _ = train(f'task = "text-classification"{BERT}problem_type = "regression"\n', rows, held_out)
    mean = sum(row["label"] for row in rows) / 70
    expected = sum((row["label"] - mean) ** 2 for row in held_out) / 40
    assert values(record) == {
        "mean_squared_error": pytest.approx(expected, rel=1e-5),
        "loss": pytest.approx(expected, rel=1e-5),
        "pearson": 0.0,
        "spearmanr": 0.0,
    }


def test_the_most_frequent_set_of_classes_and_the_one_of_the_best_f1(train):
    """Most rows have no class at all, which is right most often and has no F1."""
    sets = [[], [], [], ["a"], ["a", "b"]]
    rows, held_out = labelled(60, sets), labelled(40, sets, 100)
    record, _ = train(f'task = "text-classification"{BERT}label_column = "label"\n', rows, held_out)
    found = values(record)
    assert found["accuracy"] == 0.6
    assert found["f1"] == pytest.approx(2 * 16 / (40 + 24))  # always a: 16 hits, 40 marks, 16 + 8 right ones
    assert found["f1_macro"] == pytest.approx(2 * 16 / (40 + 16) / 2)
    of_a, of_b = (24 + 0.5) / 61, (12 + 0.5) / 61
    each = [-math.log(p if yes else 1 - p) for p, share in ((of_a, 0.4), (of_b, 0.2)) for yes in (1, 0)]
    expected = (0.4 * each[0] + 0.6 * each[1] + 0.2 * each[2] + 0.8 * each[3]) / 2
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    answers = {key: each["answer"] for key, each in record["trivial"]["metrics"].items()}
    assert answers["eval_accuracy"] == "no class" and answers["eval_f1"] == 'always "a"'


@pytest.mark.parametrize(("tags", "f1"), [(["O", "B-X", "O"], {"f1": 0.0}), (["N", "V", "N"], {"f1_macro": 0.4})])
def test_the_most_frequent_tag(tags, f1, train):
    rows = [{"tokens": ["the", f"fox{i}", "saw"], "tags": tags} for i in range(60)]
    record, _ = train(f'task = "token-classification"{BERT}', rows[:30], rows[30:])
    found = values(record)
    assert {key: found[key] for key in ("accuracy", *f1)} == pytest.approx({"accuracy": 2 / 3, **f1})
    assert found["loss"] == pytest.approx(-(2 * math.log(2 / 3) + math.log(1 / 3)) / 3)


@pytest.mark.parametrize("unanswerable", [True, False])
def test_no_answer_or_the_most_frequent_one(unanswerable, train):
    def row(i, answer):
        context = f"the fox saw {i} and the owl"
        texts = (
            {"text": [answer], "answer_start": [context.index(answer)]} if answer else {"text": [], "answer_start": []}
        )
        return {"id": str(i), "question": "who?", "context": context, "answers": texts}

    answers = ["the fox", "fox", "", "owl"] if unanswerable else ["the fox", "Fox".lower(), "owl"]
    rows = [row(i, answers[i % len(answers)]) for i in range(100)]
    record, _ = train(f'task = "question-answering"{BERT}', rows[:60], rows[60:])
    right = [answers[i % len(answers)] for i in range(60, 100)]
    hits = sum(answer == "" if unanswerable else answer.removeprefix("the ") == "fox" for answer in right)
    found = values(record)
    assert found["exact_match"] == found["f1"] == pytest.approx(100 * hits / 40)
    said = record["trivial"]["metrics"]["eval_f1"]["answer"]
    assert said == ("no answer" if unanswerable else 'always "the fox"')
    if unanswerable:
        assert (found["HasAns_f1"], found["NoAns_f1"]) == (0, 100)


def test_the_most_frequent_place_of_the_right_choice(train):
    rows = [
        {"question": f"who saw {i}?", "choices": ["fox", "hen", "owl"], "answer": (0, 2, 2, 1)[i % 4]}
        for i in range(100)
    ]
    held_out = [*rows[60:], {"question": "who?", "choices": ["fox", "hen"], "answer": 0}]
    record, _ = train(f'task = "multiple-choice"{BERT}', rows[:60], held_out)
    found = values(record)
    assert found["accuracy"] == pytest.approx(20 / 41)  # wrong where there is no such choice
    losses = [-math.log(0.5)] * 20 + [-math.log(0.25)] * 21
    assert found["loss"] == pytest.approx(sum(losses) / 41)


@pytest.mark.parametrize("summaries", [True, False])
def test_the_source_copied_or_its_beginning(summaries, train):
    lines = [line.replace(" at ", " when it was ") for line in corpus(100).splitlines()]
    pairs = [{"source": line, "target": " ".join(line.split()[1 : 4 if summaries else 9])} for line in lines]
    record, _ = train(
        f'task = "seq2seq"{SCRATCH}max_length = 64\nmax_target_length = 16\n', pairs[:60], pairs[60:],
        "generation.max_new_tokens=4", "generation.num_beams=1",
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained("run")
    copied = [row["source"] for row in pairs[60:]]
    if summaries:
        sizes = [len(tokenizer(row["target"], add_special_tokens=False)["input_ids"]) for row in pairs[:60]]
        ids = tokenizer(copied, add_special_tokens=False)["input_ids"]
        copied = [tokenizer.decode(each[: round(sum(sizes) / 60)]) for each in ids]
    right = [row["target"] for row in pairs[60:]]
    found = values(record)
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(copied, [right]).score)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(copied, [right]).score)
    labels = [each for row in pairs[:60] for each in tokenizer(row["target"])["input_ids"]]
    loss = witten_bell(Counter(labels), len(tokenizer))
    losses = [loss(each) for row in pairs[60:] for each in tokenizer(row["target"])["input_ids"]]
    assert found["loss"] == pytest.approx(sum(losses) / len(losses))
    assert record["trivial"]["metrics"]["eval_loss"]["answer"] == "unigram model"


GPT2 = CAUSAL.split("[data]")[0].replace('task = "causal-lm"', "")


def test_a_unigram_model_of_the_answers_of_chats(train):
    def row(i):
        asked = {"role": "user", "content": f"who saw owl {i}?"}
        return {"messages": [asked, {"role": "assistant", "content": f"fox {i * i}" + " saw" * (i % 5)}]}

    rows = [row(i) for i in range(100)]
    recipe = f'task = "chat"\n{GPT2.replace("n_positions = 32", "n_positions = 128")}[data]\npath = "rows"\n'
    record, _ = train(recipe, rows[:60], rows[60:])
    tokenizer = AutoTokenizer.from_pretrained("run")

    def written(part):
        texts = [row["messages"][1]["content"] + tokenizer.eos_token for row in part]
        return [each for text in texts for each in tokenizer(text)["input_ids"]]

    loss = witten_bell(Counter(written(rows[:60])), len(tokenizer))
    expected = np.mean([loss(each) for each in written(rows[60:])])
    assert values(record) == {"loss": pytest.approx(expected), "perplexity": pytest.approx(math.exp(expected))}


def test_a_unigram_model_of_running_text(train):
    lines = corpus(200).splitlines(keepends=True)
    recipe = CAUSAL.replace('"corpus.txt"', '"rows"').replace("validation_fraction = 0.2\n", "")
    record, said = train(recipe, "".join(lines[:120]), "".join(lines[120:]))
    tokenizer = AutoTokenizer.from_pretrained("run")

    def predicted(part):
        ids = [each for line in part for each in [*tokenizer(line.strip("\n"))["input_ids"], tokenizer.eos_token_id]]
        return ids[1:], len(ids)

    learned = predicted(lines[:120])[0]
    loss = witten_bell(Counter(learned[: len(learned) // 16 * 16]), len(tokenizer))  # in blocks of 16
    labels, number = predicted(lines[120:])
    expected = np.mean([loss(each) for each in labels])
    size = sum(len(line.strip("\n").encode()) for line in lines[120:])
    assert values(record) == {
        "loss": pytest.approx(expected),
        "perplexity": pytest.approx(math.exp(expected)),
        "bits_per_byte": pytest.approx(expected / math.log(2) * (number - 1) / size),
    }
    assert f"(unigram model: {expected:.4f})" in said


CORRUPTED = {
    "masked-lm": 'model_type = "bert"\nnum_hidden_layers = 1\nnum_attention_heads = 2\nhidden_size = 16\n'
    "intermediate_size = 32\nmax_position_embeddings = 32\n",
    "denoising": SCRATCH.split("[model.config]\n")[1].split("[tokenizer]")[0],
    "replaced-token-detection": 'model_type = "electra"\nnum_hidden_layers = 1\nnum_attention_heads = 4\n'
    "hidden_size = 32\nembedding_size = 16\nintermediate_size = 32\nmax_position_embeddings = 32\n",
}


@pytest.mark.parametrize("task", CORRUPTED)
def test_a_unigram_model_of_what_is_hidden(task, train, monkeypatch):
    lines = corpus(200).splitlines(keepends=True)
    keys = "corruption = { span_corruption = 0.0, infilling = 1.0 }\n" * (task == "denoising")
    recipe = f"""task = "{task}"
[model.config]
{CORRUPTED[task]}
[tokenizer]
type = "wordpiece"
vocab_size = 300
[data]
path = "rows"
sample_by = "line"
block_size = 16
{keys}"""
    record, _ = train(recipe, "".join(lines[:120]), "".join(lines[120:]))
    assembly = assemble(load("recipe.toml", []), 42)
    (held_out,) = assembly.validation.values()

    def hidden(part):
        batches = (assembly.collate([part[i]])["labels"].flatten().tolist() for i in range(len(part)))
        return [each for batch in batches for each in batch if each != -100]

    loss = witten_bell(Counter(hidden(assembly.train)), len(assembly.tokenizer))
    expected = pytest.approx(np.mean([loss(each) for each in hidden(held_out)]))
    found, metrics = values(record), record["metrics"]
    if task != "replaced-token-detection":
        assert found == {"loss": expected, "perplexity": pytest.approx(math.exp(expected.expected))}
        return
    assert (found["generator_loss"], found["auc"]) == (expected, 0.5)
    share = 1 - found["accuracy"]  # of replaced tokens; of those hidden nearly all, as the generator knows nothing
    assert 0.05 < share < 0.25
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert found["discriminator_loss"] == pytest.approx(entropy)
    assert found["discriminator_loss"] <= metrics["eval_discriminator_loss"] + 1e-3


def told(number, shuffled):
    rows = [
        {"text": line.split(" at ")[0], "label": "fox" if "fox" in line[:8] else "none"}
        for line in corpus(number).splitlines()
        if line[4:7] in ("fox", "hen")
    ]
    if shuffled:
        labels = np.random.default_rng(0).permutation([row["label"] for row in rows])
        rows = [row | {"label": label} for row, label in zip(rows, labels.tolist(), strict=True)]
    return rows


@pytest.mark.parametrize("shuffled", [True, False])
def test_a_model_of_shuffled_labels_is_no_better_and_a_good_one_is(shuffled, train):
    rows = told(600, shuffled)
    words = ("trainer.max_steps=30", "trainer.learning_rate=5e-3", "trainer.per_device_train_batch_size=16")
    record, said = train(f'task = "text-classification"{BERT}', rows[:120], rows[120:], *words)
    assert record["trivial"]["better"] == {"eval": not shuffled}
    low, high = record["trivial"]["metrics"]["eval_accuracy"]["better_by"]
    assert (low > 0) == (not shuffled) and low <= high
    assert ("no better than the baseline" in said) == shuffled
    if shuffled:
        hint = said[said.index("\nhint ") :]
        assert "trainer.max_steps=" in hint and "trainer.per_device_train_batch_size=8" in hint
    else:
        assert "\nwarning" not in said and "\nhint" not in said


def test_few_rows_cannot_tell_and_that_is_said(train):
    rows = told(300, False)
    record, said = train(f'task = "text-classification"{BERT}', rows[:80], rows[80:109])
    assert record["trivial"]["better"] == {"eval": None}
    assert "29 rows cannot show whether the model beats the baseline" in said
    assert "better_by" not in record["trivial"]["metrics"]["eval_accuracy"] and "\nhint" not in said


def test_each_split_has_its_own(train, tmp_path):
    rows, recipe = labelled(60, ["good", "bad", "good"]), f'task = "text-classification"{BERT}'
    (tmp_path / "rows").mkdir()
    Path("rows/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled(30, ["good"], 200)))
    recipe += 'split = "train"\nvalidation_split = ["validation", "test"]\n'
    record, said = train(recipe, rows, labelled(40, ["good", "bad"], 100))
    assert (values(record)["accuracy"], values(record)["test_accuracy"]) == (0.5, 1.0)
    assert record["trivial"]["better"].keys() == {"eval", "eval_test"}
    assert re.search(r'^ +eval_test_accuracy [\d.]+ \(always "good": 1.0000\)$', said, re.MULTILINE)


def test_a_run_that_was_stopped_behind_its_last_evaluation_says_the_same(train, llmkit):
    rows, held_out = labelled(60, ["good", "bad", "good"]), labelled(40, ["good", "bad"], 100)
    words = ("trainer.eval_strategy=steps", "trainer.eval_steps=2", "trainer.save_steps=2")
    record, _ = train(f'task = "text-classification"{BERT}', rows, held_out, *words)
    Path("run/run.json").write_text(json.dumps({**record, "status": "running", "trivial": None}))
    Path("run/model.safetensors").unlink()
    lines = Path("run/metrics.jsonl").read_text().count("eval_loss")
    done = llmkit("finetune", "recipe.toml", *words, "--output-dir", "run", "--resume")
    assert done.exit_code == 0, done.stderr
    assert json.loads(Path("run/run.json").read_text())["trivial"] == record["trivial"]
    assert Path("run/metrics.jsonl").read_text().count("eval_loss") == lines


# ---- words ---------------------------------------------------------------------------------------------------------


def arguments(**changes):
    given = {"num_train_epochs": 3, "max_steps": -1, "learning_rate": 2e-5, "per_device_train_batch_size": 32}
    return SimpleNamespace(**given | {"world_size": 1} | changes)


def hint(losses, evaluations, steps, global_batch=None, **changes):
    history = [{"loss": loss} for loss in losses]
    history += [{"step": step, "eval_loss": loss} for step, loss in enumerate(evaluations, 1)]
    state = SimpleNamespace(log_history=history, global_step=steps)
    return trivial.judge(arguments(**changes), state, {}, global_batch)[1]


FALLING, LEARNED, FLAT = (5.2, 4.1, 3.0, 2.5), (0.7, 0.4, 0.1, 0.01), (0.7, 0.7, 0.7, 0.7)
SMALLER = "per_device_train_batch_size=8"


@pytest.mark.parametrize(
    ("changes", "losses", "steps", "words"),
    [
        ({}, FALLING, 21, ("num_train_epochs=30", SMALLER)),
        ({"max_steps": 100}, FALLING, 100, ("max_steps=200", SMALLER)),
        ({"per_device_train_batch_size": 8}, FALLING, 21, ("num_train_epochs=30", "learning_rate=6e-05")),
        ({}, FLAT, 600, ("learning_rate=6e-05", "label")),
        ({"learning_rate": 1e-3}, FLAT, 600, ("learning_rate=2e-04", "label")),
        ({}, FALLING, 600, ("has learned too little", "num_train_epochs=6", "learning_rate=6e-05", "more rows")),
        ({"learning_rate": 1e-4}, FALLING, 600, ("num_train_epochs=6", SMALLER, "more rows")),
        ({"max_steps": 600}, FALLING, 600, ("max_steps=1200", "more rows")),
        ({"num_train_epochs": 10}, LEARNED, 2000, ("memorizes", "num_train_epochs=5", "more rows")),
        ({"num_train_epochs": 1}, LEARNED, 2000, ("memorizes", "learning_rate=7e-06", "more rows")),
    ],
)
def test_what_to_try_fits_the_run(changes, losses, steps, words):
    said = hint(losses, [2.9], steps, **changes)
    assert all(word in said for word in words), said


def test_more_training_is_proposed_only_to_a_model_that_does_not_memorize():
    assert "num_train_epochs=6" in hint(FALLING, [2.9, 2.7], 600)
    assert "num_train_epochs=2" in hint(FALLING, [2.4, 2.9], 600)  # it rose
    assert "num_train_epochs=2" in hint(FALLING, [5.1], 600)  # far above the training loss
    said = hint(FALLING, [], 600)
    assert "num_train_epochs=6" in said and "(training loss 2.5000)" in said


def test_a_recipes_global_batch_is_made_smaller_by_its_own_key():
    said = hint(FALLING, [2.9], 600, 16, learning_rate=1e-4)
    assert "data.global_batch_size=8" in said and SMALLER not in said
    assert "data.global_batch_size=16" in hint(FALLING, [2.9], 600, 32, learning_rate=1e-4, world_size=2)
    assert "global_batch_size" not in hint(FALLING, [2.9], 600, 8, learning_rate=1e-4)


def test_a_loss_that_did_not_fall_is_said():
    def judged(*losses):
        history = [{"loss": loss} for loss in losses]
        return trivial.judge(arguments(), SimpleNamespace(log_history=history, global_step=900), {})[0]

    ((warns, line),) = judged(0.7, 0.69, 0.7, 0.71)
    assert warns and "did not fall: 0.7000 at first, 0.7100 at the end" in line
    assert judged(0.7, 0.69, 0.7, 0.6) == [] == judged(0.7, 0.8, 0.9)  # three are too few to tell


def test_worse_in_one_metric_is_not_better():
    def better(**intervals):
        return Comparison({}, intervals, 100).better

    assert better(f1=(0.1, 0.2), accuracy=(-0.1, 0.1))
    assert not better(f1=(0.1, 0.2), accuracy=(-0.2, -0.1))
    assert not better(f1=(0.0, 0.0))


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([0.7, 0.6, 0.9], (2, 0.6, 0.9)),
        ([0.7, 0.6, 0.65], None),  # a little is chance
        ([0.9, 0.8, 0.5], None),
        ([0.5], None),
        ([], None),
    ],
)
def test_an_evaluation_loss_that_rose_is_found(losses, expected):
    history = [{"step": step, "eval_loss": loss} for step, loss in enumerate(losses, 1)]
    assert trivial.rose([{"step": 1, "loss": 9.0}, *history]) == expected


@pytest.mark.parametrize(
    ("accuracies", "word"),
    [((0.8, 0.8), "only the scores are too sure"), ((0.8, 0.82), "too sure"), ((0.8, 0.78), "memorizes")],
)
def test_a_loss_that_rose_while_as_many_answers_are_right_is_told_apart(accuracies, word):
    losses = zip((46, 414), (0.627, 2.2173), accuracies, strict=True)
    history = [{"step": step, "eval_loss": loss, "eval_accuracy": right} for step, loss, right in losses]
    said, _ = trivial.judge(arguments(), SimpleNamespace(log_history=history, global_step=414), {})
    assert word in said[0][1]


def test_a_model_that_memorizes_is_called_so():
    history = [{"step": 46, "eval_loss": 0.627}, {"step": 414, "eval_loss": 2.2173}]
    said, _ = trivial.judge(arguments(), SimpleNamespace(log_history=history, global_step=414), {})
    assert said == [
        (
            False,
            "eval_loss was lowest at step 46 (0.6270) and is 2.2173 at the end: the model memorizes its training data; "
            "more data or fewer epochs may help",
        )
    ]
