"""Evaluating: what the run measured at its end, on the run alone; on other data all of it; in constant memory."""

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import CAUSAL, MASKED, REST, corpus
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from typer.testing import CliRunner

from llmkit.cli import app

BERT = MASKED.removesuffix(REST).replace('task = "masked-lm"', "")
# Everything that a training asks of its evaluations, and that an evaluation alone has no use for.
TRAINER = """[trainer]
max_steps = 12
per_device_train_batch_size = 8
per_device_eval_batch_size = 4
learning_rate = 5e-3
eval_strategy = "steps"
eval_steps = 6
save_strategy = "steps"
save_steps = 6
load_best_model_at_end = true
metric_for_best_model = "eval_loss"
train_sampling_strategy = "group_by_length"
[early_stopping]
early_stopping_patience = 5
"""
DATA = {
    "classifier": 'path = "animals.csv"\nvalidation_fraction = 0.2\nmax_eval_samples = 20',
    "qa": 'path = "qa.jsonl"\nvalidation_fraction = 0.2\nmax_length = 24\nstride = 6',
}
WITHOUT_EVALUATION = (
    "trainer.eval_strategy=no",
    "trainer.load_best_model_at_end=",
    "early_stopping=",
    "trainer.max_steps=1",
)
TASKS = {"classifier": "text-classification", "qa": "question-answering"}


def write_data() -> None:
    lines = [line.split(" at ")[0] + " far" * (i % 6) for i, line in enumerate(corpus(200).splitlines())]
    rows = [(line, "fox" if line.startswith("the fox") else "other") for line in lines]
    Path("animals.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    questions = [
        {
            "question": "who saw ?",
            "context": f"{line} far away",
            "answers": {"text": [word], "answer_start": [4]} if i % 4 else {"text": [], "answer_start": []},
        }
        for i, line in enumerate(lines)
        for word in [line.split()[1]]
    ]
    Path("qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    Path("corpus.txt").write_text(corpus())


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with data, recipes and a finished run of each: a classifier, an adapter, answers, language models."""
    folder = tmp_path_factory.mktemp("home")
    recipes = {name: f'task = "{task}"\n{BERT}[data]\n{DATA[name]}\n{TRAINER}' for name, task in TASKS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_data()
        for name, text in {"masked": MASKED, "causal": CAUSAL, **recipes}.items():
            Path(f"{name}.toml").write_text(text)
            verb = "finetune" if name in TASKS else "pretrain"
            train(verb, f"{name}.toml", "--output-dir", name)
        train("finetune", "classifier.toml", "model.name=masked", "lora.r=4", "--output-dir", "lora")
    return folder


def train(*words: str) -> None:
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr


@pytest.fixture
def place(home, tmp_path, monkeypatch) -> Path:
    """An empty working directory from which the runs, recipes and data are `home/...`."""
    (tmp_path / "home").symlink_to(home)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def measured(llmkit, place):
    """The metrics on stdout, which holds nothing else but those of the trivial answer."""

    def call(*words: str) -> dict[str, float]:
        done = llmkit("evaluate", *words)
        assert done.exit_code == 0, done.stderr
        found = json.loads(done.stdout)
        assert found.pop("trivial", {}).keys() <= found.keys()
        return found

    return call


@pytest.fixture
def refused(llmkit, place):
    def call(*words: str) -> str:
        done = llmkit("evaluate", *words)
        assert (done.exit_code, done.stdout) == (2, "")
        return done.stderr

    return call


def of_run(name: str) -> dict[str, float]:
    """What a run measured at its end, without how long that took."""
    found = json.loads(Path(name, "run.json").read_text())["metrics"]
    return {k: v for k, v in found.items() if k.startswith("eval_") and not k.endswith(("runtime", "_per_second"))}


@pytest.mark.parametrize("name", ["classifier", "lora", "qa", "causal", "masked"])
def test_a_run_alone_gives_the_figures_of_its_end(name, measured):
    """Of text, the tokens behind the last whole block count here and there."""
    before = sorted(Path("home", name).rglob("*"))
    assert measured(f"home/{name}") == pytest.approx(of_run(f"home/{name}"), rel=0, abs=1e-6)
    if name in ("causal", "masked"):
        data = json.loads(Path("home", name, "run.json").read_text())["data"]["validation"]
        assert data["tail"] == 0
        assert data["tokens"] % (14 if name == "masked" else 16)  # else this shows nothing
    found = of_run(f"home/{name}")
    assert len(found) == {"classifier": 4, "lora": 4, "qa": 7, "causal": 3, "masked": 2}[name]
    assert sorted(Path("home", name).rglob("*")) == before  # an evaluation leaves nothing behind
    assert [path.name for path in Path().iterdir()] == ["home"]


@pytest.mark.parametrize("name", ["classifier", "lora", "qa"])
def test_a_checkpoint_gives_the_figures_of_its_step(name, measured):
    log = [json.loads(line) for line in Path(f"home/{name}/metrics.jsonl").read_text().splitlines()]
    found = {step: measured(f"home/{name}/checkpoint-{step}") for step in (6, 12)}
    for step, metrics in found.items():
        logged = next(entry for entry in log if entry["step"] == step and "eval_loss" in entry)
        assert metrics == pytest.approx({key: logged[key] for key in metrics}, rel=0, abs=1e-6)
    assert abs(found[6]["eval_loss"] - found[12]["eval_loss"]) > 1e-4


@pytest.mark.parametrize("setting", ['report_to = ["wandb"]', "fsdp = true", 'deepspeed = "stage3.json"'])
def test_what_only_a_training_needs_is_left_aside(setting, measured, home):
    """The tracker is not installed here; sharding needs several processes."""
    shutil.copytree(home / "classifier", "run", ignore=shutil.ignore_patterns("checkpoint-*"))
    saved = Path("run/recipe.toml")
    saved.write_text(saved.read_text().replace("[trainer]\n", f"[trainer]\n{setting}\n"))
    assert measured("run") == measured("home/classifier")


def test_a_model_that_knows_no_answer_may_give_none_on_any_data(measured):
    """Every question of this data has an answer; whether one may be refused is what the run has learned."""
    rows = [json.loads(line) for line in Path("home/qa.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["answers"]["text"]][:40]
    Path("other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("home/qa", "data.path=other.jsonl")
    assert measured(*words)["eval_f1"] > 0
    never = "data.null_score_diff_threshold=-1000"
    assert measured(*words, never)["eval_f1"] == 0
    assert measured(*words, never, "data.unanswerable=false")["eval_f1"] > 0


def test_of_other_data_every_row_counts(llmkit, measured):
    """The recipe would hold out a fifth, and of that look at 20 rows."""
    rows = list(csv.DictReader(Path("home/animals.csv").read_text().splitlines()))[:90]
    with Path("other.csv").open("w") as stream:
        csv.writer(stream).writerows([["text", "label"], *([row["text"], row["label"]] for row in rows)])
    done = llmkit("evaluate", "home/classifier", "data.path=other.csv")
    assert "evaluated: 90 rows" in done.stderr  # and not "train"
    assert "trained on" not in done.stderr
    llmkit("predict", "home/classifier", "--input", "other.csv", "--output", "said.jsonl")
    labels = [json.loads(line)["predicted_label"] for line in Path("said.jsonl").read_text().splitlines()]
    right = sum(label == row["label"] for label, row in zip(labels, rows, strict=True))
    assert json.loads(done.stdout)["eval_accuracy"] == pytest.approx(right / 90)
    assert ": 7 rows" in llmkit("evaluate", "home/classifier", "data.path=other.csv", "data.max_eval_samples=7").stderr
    held_out = llmkit("evaluate", "home/classifier", "data.path=other.csv", "data.validation_fraction=0.5").stderr
    assert "validation: " in held_out
    assert ": 90 rows" not in held_out


def test_the_rows_that_a_model_learned_from_are_called_so(llmkit, place):
    train("finetune", "home/classifier.toml", "data.validation_fraction=", *WITHOUT_EVALUATION, "--output-dir", "all")
    for words, number in (((), 20), (("data.max_eval_samples=",), 200), (("data.path=home/animals.csv",), 200)):
        done = llmkit("evaluate", "all", *words)
        assert f"evaluated: {number} rows" in done.stderr
        assert "the model was trained on these rows" in done.stderr


def test_of_other_text_every_document_counts(llmkit, place):
    Path("other.txt").write_text(corpus(50))
    for extra in ([], ["data.validation_from=end"]):
        done = llmkit("evaluate", "home/causal", "data.path=other.txt", *extra)
        assert "50 documents" in done.stderr
    shutil.copytree("home/causal", "end")
    saved = Path("end/recipe.toml")
    saved.write_text(saved.read_text().replace('validation_from = "documents"', 'validation_from = "end"'))
    assert "50 documents" in llmkit("evaluate", "end", "data.path=other.txt").stderr


OTHER = "".join(f"{line}\n\n" for line in corpus(12).splitlines()[::-1]) + "the owl, the owl\n"


def independent(name: str, size: int, stride: int) -> tuple[float, int]:
    """Summed loss (nats) of OTHER and the number of predicted tokens: a window of `size` every `stride` tokens."""
    model, words = AutoModelForCausalLM.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
    ids = torch.tensor([*words(OTHER)["input_ids"], words.eos_token_id])
    total, done = 0.0, 1
    for begin in range(0, len(ids), stride):
        end = min(begin + size + 1, len(ids))
        with torch.no_grad():
            shares = model(ids[None, begin : end - 1]).logits[0].double().log_softmax(-1)
        total -= sum(float(shares[place - begin - 1, ids[place]]) for place in range(done, end))
        done = end
        if end == len(ids):
            break
    return total, done - 1


@pytest.mark.parametrize(("size", "stride"), [(16, None), (16, 16), (32, 1), (32, 7), (20, 19), (9, 4)])
def test_perplexity_is_that_of_a_plain_sliding_window(size, stride, measured):
    Path("other.txt").write_text(OTHER)
    setting = [] if stride is None else [f"data.stride={stride}"]
    words = ("home/causal", "data.path=other.txt", "data.sample_by=document", f"data.block_size={size}")
    found = measured(*words, *setting, "trainer.per_device_eval_batch_size=3")
    total, count = independent("home/causal", size, stride or size)
    assert found["eval_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert found["eval_bits_per_byte"] == pytest.approx(total / math.log(2) / len(OTHER.encode()), rel=1e-5)


def test_any_causal_model_is_measured_on_ones_own_text(measured, home):
    """A folder that is no run; the smaller the stride, the more a token sees before it."""
    shutil.copytree(home / "causal", "folder", ignore=shutil.ignore_patterns("checkpoint-*", "*.jsonl", "run.json"))
    Path("other.txt").write_text(OTHER)
    words = ("folder", "--task", "causal-lm", "data.path=other.txt")
    total, count = independent("folder", 32, 32)
    assert measured(*words)["eval_loss"] == pytest.approx(total / count, rel=1e-5)
    total, count = independent("folder", 16, 4)
    strided = measured(*words, "data.block_size=16", "data.stride=4")
    assert strided["eval_loss"] == pytest.approx(total / count, rel=1e-5)


def test_documents_are_measured_apart_if_asked(measured):
    """Each alone, in one input: what is predicted of each are all tokens but its first."""
    lines = corpus(30).splitlines()
    Path("other.txt").write_text("\n".join(lines))
    apart = "data.pack=isolated"
    found = measured("home/causal", "data.path=other.txt", "data.sample_by=line", "data.block_size=32", apart)
    model, words = (
        AutoModelForCausalLM.from_pretrained("home/causal").eval(),
        AutoTokenizer.from_pretrained("home/causal"),
    )
    row = [[*words(line)["input_ids"], words.eos_token_id] for line in lines]
    total, count, place = 0.0, 0, 0
    for ids in row:
        cuts = [0, *(cut - place for cut in range(0, 10_000, 32) if 0 < cut - place < len(ids)), len(ids)]
        for begin, end in pairwise(cuts):  # a document that goes over the end of a block
            piece = torch.tensor(ids[begin : end + 1])
            if len(piece) > 1:
                with torch.no_grad():
                    shares = model(piece[None, :-1]).logits[0].double().log_softmax(-1)
                total -= float(shares.gather(1, piece[1:, None]).sum())
                count += len(piece) - 1
        place += len(ids)
    assert found["eval_loss"] == pytest.approx(total / count, rel=1e-5)
    assert found["eval_loss"] != measured("home/causal", "data.path=other.txt", "data.block_size=32")["eval_loss"]


@pytest.mark.parametrize("words", [("home/masked",), ("folder", "--task", "masked-lm", "data.block_size=16")])
def test_pseudo_perplexity_is_that_of_a_plain_loop(words, measured, home):
    """Salazar et al. 2020 (arXiv:1910.14659): each token hidden alone, in every block, the last and short one too."""
    shutil.copytree(home / "masked", "folder", ignore=shutil.ignore_patterns("checkpoint-*", "*.jsonl", "run.json"))
    text = "the owl met 3 of the hens at 12, the fox led\n"
    Path("other.txt").write_text(text)
    found = measured(*words, "data.path=other.txt", "data.masking=each", "data.sample_by=document")
    assert found.keys() == {"eval_loss", "eval_pseudo_perplexity"}
    model, tokenizer = (
        AutoModelForMaskedLM.from_pretrained("home/masked").eval(),
        AutoTokenizer.from_pretrained("home/masked"),
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) % 14
    losses = []
    for begin in range(0, len(ids), 14):
        block = [tokenizer.cls_token_id, *ids[begin : begin + 14], tokenizer.sep_token_id]
        for place in range(1, len(block) - 1):
            if block[place] == tokenizer.unk_token_id:
                continue
            asked = torch.tensor(block)
            asked[place] = tokenizer.mask_token_id
            with torch.no_grad():
                losses.append(-float(model(asked[None]).logits[0, place].double().log_softmax(-1)[block[place]]))
    assert found["eval_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found["eval_pseudo_perplexity"] == pytest.approx(math.exp(found["eval_loss"]), rel=1e-6)


def test_a_masked_model_is_measured_by_its_training_objective_too(measured):
    Path("other.txt").write_text(OTHER)
    for masking in ("token", "whole-word", "span"):
        found = measured("home/masked", "data.path=other.txt", f"data.masking={masking}")
        assert found.keys() == {"eval_loss", "eval_perplexity"}
        assert found == measured("home/masked", "data.path=other.txt", f"data.masking={masking}")


def test_a_text_shorter_than_a_block_is_measured(measured):
    Path("short.txt").write_text("the fox")
    assert measured("home/causal", "data.path=short.txt")["eval_loss"] > 0
    assert measured("home/masked", "data.path=short.txt", "data.masking=each")["eval_loss"] > 0


def test_another_recipe_names_the_data(measured):
    Path("other.toml").write_text(Path("home/classifier.toml").read_text().replace("animals.csv", "other.csv"))
    rows = Path("home/animals.csv").read_text().splitlines(keepends=True)
    Path("other.csv").write_text("".join([rows[0], *rows[100:]]))
    by_recipe = measured("home/classifier", "other.toml", "data.validation_fraction=", "data.max_eval_samples=")
    assert by_recipe == measured("home/classifier", "data.path=other.csv")
    assert by_recipe != measured("home/classifier")
    by_task = measured(*("home/classifier", "--task", "text-classification", "data.path=other.csv"), "data.max_length=")
    assert by_task == pytest.approx(by_recipe, abs=1e-6)


def test_a_label_that_the_model_does_not_know_is_named_with_its_row_and_counts_as_wrong(llmkit, place):
    Path("other.csv").write_text("text,label\nthe fox,fox\nthe hen,hen\nthe fox,fox\n")
    done = llmkit("evaluate", "home/classifier", "data.path=other.csv")
    assert done.exit_code == 0, done.stderr
    assert "1 row has a label that the model does not know (hen (1)) and counts as wrong, such as" in done.stderr
    assert "line 3; the classes are fox, other" in done.stderr
    found = json.loads(done.stdout)
    assert found["eval_accuracy"] <= 2 / 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["home/classifier", "home/qa.toml"], "is a model for text-classification, and the recipe is for question-ans"),
        (["home/masked", "home/causal.toml"], "is a model for masked-lm, and the recipe is for causal-lm"),
        (["home/classifier", "home/qa.toml", "--task", "sst2"], "each name a recipe"),
        (["home/classifier", "--task", "sst3"], "did you mean `sst2`?"),
        (["home/classifier", "data.pth=a.csv"], "did you mean `data.path=a.csv`?"),
        (["home/classifier", "data.path=none.csv"], "none.csv"),
        (["home/none", "home/qa.toml"], "the model `home/none`"),
        (["bare"], "`bare` is not a run, so the data to evaluate it on must be given"),
        (["half"], "the run `half` is not finished"),
        (["home/causal", "data.stride=17"], "data.stride = 17 exceeds a window of 16 tokens"),
        (
            ["home/causal", "--task", "masked-lm", "data.path=home/corpus.txt"],
            "is a model for causal-lm, and the recipe",
        ),
        (["home/causal", "--task", "causal-lm"], "data.path: required"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(words, said, refused, home, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("bare", "half"):
        shutil.copytree(home / "classifier", name, ignore=shutil.ignore_patterns("checkpoint-*"))
    Path("bare/run.json").unlink()
    record = json.loads(Path("half/run.json").read_text())
    Path("half/run.json").write_text(json.dumps({**record, "status": "stopped"}))
    assert said in refused(*words)


def test_the_data_without_labels_is_refused(refused):
    Path("other.csv").write_text("text\nthe fox\n")
    assert "which column is the label?" in refused("home/classifier", "data.path=other.csv")


MEASURE = """
import resource, sys
from llmkit.cli import app
for size in (1_000, 10_000):
    for run, data in (("causal", f"lines-{size}.txt"), ("classifier", f"rows-{size}.csv")):
        try:
            app(["evaluate", f"home/{run}", f"data.path={data}", "trainer.per_device_eval_batch_size=64"])
        except SystemExit as left:
            assert left.code == 0
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_data(place):
    """A classifier on rows and a language model, whose logits would be 5 KB a token, on lines: ten times as many."""
    for size in (1_000, 10_000):
        texts = corpus(size).splitlines()
        Path(f"rows-{size}.csv").write_text("text,label\n" + "".join(f"{text},fox\n" for text in texts))
        Path(f"lines-{size}.txt").write_text("\n".join(texts) + "\n")
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    for size in (1_000, 10_000):
        assert f"{size:,} documents" in done.stderr
        assert f"{size:,} rows" in done.stderr
    little, much = map(int, re.findall(r"^peak (\d+)$", done.stderr, re.MULTILINE))
    assert much < 1.05 * little


def test_a_language_model_is_measured_on_conversations_before_it_learns_them(workplace, llmkit):
    assert llmkit("pretrain", "causal.toml", "--output-dir", "causal").exit_code == 0
    rows = [{"prompt": f"the fox {n}", "completion": f"saw {n}"} for n in range(20)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = 'task = "chat"\n[model]\nname = "causal"\n[data]\npath = "rows.jsonl"\nvalidation_fraction = 0.4\n'
    Path("chat.toml").write_text(recipe + "[trainer]\nmax_steps = 30\nlearning_rate = 5e-3\n")
    before = llmkit("evaluate", "causal", "chat.toml")
    assert before.exit_code == 0, before.stderr
    assert llmkit("finetune", "chat.toml", "--output-dir", "chat").exit_code == 0
    after = llmkit("evaluate", "chat")
    assert json.loads(after.stdout)["eval_loss"] < 0.8 * json.loads(before.stdout)["eval_loss"]
