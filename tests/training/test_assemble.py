"""What a recipe becomes before there is a model: sources, each cleaned and measured for itself; tokens."""

import json
import os
import re
import signal

import pytest
from conftest import CAUSAL, byte_tokenizer, corpus
from safetensors.torch import load_file
from transformers import GPT2Config

from llmkit import accelerate_launch, launch, recipe
from llmkit.data.text import token_cache
from llmkit.errors import UserError
from llmkit.models import unknown_tokens
from llmkit.training.assemble import assemble
from llmkit.training.progress import MetricsFile

SOURCES = (
    CAUSAL.replace('path = "corpus.txt"\nsample_by = "line"\n', "")
    + """
[data.clean]
exact_duplicates = true
[data.sources.stories]
path = "corpus.txt"
sample_by = "line"
weight = 3
[data.sources.web]
path = "web.jsonl"
text_column = "body"
clean = { html = true, personal_data = ["email"] }
"""
)


@pytest.fixture
def mixed(workplace):
    (workplace / "corpus.txt").write_text(corpus() + corpus(50))
    rows = [
        {"id": i, "body": f"<p>{line}</p><script>x</script><p>a{i}@b.org</p>"}
        for i, line in enumerate(corpus(400).splitlines()[200:])
    ]
    (workplace / "web.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (workplace / "mixed.toml").write_text(SOURCES)
    return workplace


def test_each_source_is_read_cleaned_and_measured_for_itself(mixed, llmkit):
    done = llmkit("pretrain", "mixed.toml", "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    record = json.loads((mixed / "run/run.json").read_text())
    stories, web = record["data"]["stories"], record["data"]["web"]
    assert stories["clean"]["steps"]["exact_duplicates"]["dropped"] > 30
    assert "html" not in stories["clean"]["steps"]
    assert web["clean"]["steps"]["html"]["changed"] == web["clean"]["in"] == web["train"]["documents"]
    assert web["clean"]["steps"]["personal_data"]["rules"] == {"email": web["clean"]["in"]}
    assert "exact_duplicates" not in web["clean"]["steps"]  # it has a table of its own
    metrics = record["metrics"]
    assert metrics["eval_loss"] == pytest.approx((metrics["eval_stories_loss"] + metrics["eval_web_loss"]) / 2)
    assert stories["epochs"] == pytest.approx(6 * 8 * 0.75 / stories["train"]["blocks"], abs=1e-4)
    assert "stories: 75.0% of the blocks" in done.stderr
    assert "`corpus.txt`, `web.jsonl`" in (mixed / "run/README.md").read_text()


def test_a_stopped_mixture_goes_on_to_the_same_weights(mixed, llmkit, monkeypatch):
    """In its second epoch, in the middle of a source's pass."""
    words = ("pretrain", "mixed.toml", "trainer.max_steps=120")
    assert llmkit(*words, "--output-dir", "whole").exit_code == 0
    assert json.loads((mixed / "whole/run.json").read_text())["metrics"]["epoch"] > 1.2
    logged = MetricsFile.on_log

    def stop(self, args, state, control, **kwargs):
        logged(self, args, state, control, **kwargs)
        if state.global_step == 110:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "on_log", stop)
        assert llmkit(*words, "--output-dir", "parts").exit_code == 75
    assert llmkit(*words, "--output-dir", "parts", "--resume").exit_code == 0
    whole, parts = (load_file(mixed / name / "model.safetensors") for name in ("whole", "parts"))
    assert all((whole[name] == parts[name]).all() for name in whole)


def test_tokens_are_made_before_the_processes_start(mixed, monkeypatch):
    """When the launcher is called, all is in the cache: no process reads the documents again."""
    found = recipe.load("mixed.toml", [], "run")

    def launched(*words):
        monkeypatch.setattr(token_cache, "_write", lambda *words: pytest.fail("tokenized again"))
        monkeypatch.setattr("llmkit.data.cleaning.pipeline._write", lambda *words: pytest.fail("cleaned again"))
        assert len(assemble(found, 42).train) > 0
        return 75

    monkeypatch.setattr(accelerate_launch, "run", launched)
    assert launch.start(found, 2, None, resume=False)[0] == 75


def test_a_stream_is_cleaned_as_it_comes(mixed, llmkit):
    words = ("data.streaming=true", "trainer.max_steps=2", "--output-dir", "run")
    done = llmkit("pretrain", "causal.toml", *words, "data.clean={min_words = 9}")
    assert done.exit_code == 0, done.stderr
    done = llmkit("pretrain", "causal.toml", *words, "data.clean={near_duplicates = true}", "--output-dir", "other")
    assert done.exit_code == 2
    assert "near_duplicates" in done.stderr


@pytest.mark.parametrize(
    ("override", "said"),
    [("data.stride=8", "data.stride is for llmkit evaluate")],
)
def test_what_means_something_in_evaluation_alone_is_refused(override, said, mixed):
    with pytest.raises(UserError, match=said):
        assemble(recipe.load("causal.toml", [override]), 42)


def test_masking_each_is_refused_in_training(mixed):
    with pytest.raises(UserError, match=r'data\.masking = "each" is for llmkit evaluate'):
        assemble(recipe.load("masked.toml", ["data.masking=each"]), 42)


def test_how_good_the_tokenizer_is_stands_in_the_record(mixed):
    made = assemble(recipe.load("causal.toml"), 42)
    about = made.record["tokenizer"]
    assert about["vocab_size"] == 300
    assert about["unknown"] == 0
    assert about["round_trip"] == 1
    assert about["bytes_per_token"] > 1.2
    assert any(line.startswith("tokenizer: BPE, 300 entries") for line in made.lines)


def test_a_changed_file_is_noticed_though_its_time_stamp_is_not(mixed):
    file = mixed / "corpus.txt"
    before = file.stat()
    first = assemble(recipe.load("causal.toml"), 42)
    file.write_text(file.read_text().replace("fox", "elk"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert file.stat().st_size == before.st_size
    second = assemble(recipe.load("causal.toml"), 42)
    assert first.record["data"]["fingerprint"] != second.record["data"]["fingerprint"]
    assert "elk" in second.tokenizer.decode(second.train.tokens.ids)
    assert "elk" not in first.tokenizer.decode(first.train.tokens.ids)


def written(place, text, name="rows.csv"):
    (place / name).write_text("text,label\n" + "".join(f"{text}{n},{n % 2}\n" for n in range(20)))


def test_rows_in_a_language_that_the_model_does_not_know_are_warned_of(workplace, base, llmkit):
    written(workplace, "the fox saw a hen ")
    written(workplace, "这家酒店的房间很干净 ", "chinese.csv")
    words = (
        "finetune",
        "--task",
        "text-classification",
        f"model.name={base}",
        "data.max_length=32",
        "trainer.max_steps=1",
    )
    shares = {}
    for name in ("rows", "chinese"):
        done = llmkit(*words, f"data.path={name}.csv", "data.validation_fraction=0.2", "--output-dir", name)
        assert done.exit_code == 0, done.stderr
        assert ("xlm-roberta-base" in done.stderr) == (name == "chinese")
        shares[name] = json.loads((workplace / name / "run.json").read_text())["data"]["train"]["unknown"]
    assert shares["rows"] <= 0.02 < 0.5 < shares["chinese"]
    done = llmkit(*words, "data.path=chinese.csv", "data.validation_fraction=0.2", "--dry-run")
    assert re.search("^warning +train: ", done.stderr, re.MULTILINE)
    assert "xlm-roberta-base" in done.stderr


def test_the_language_is_named_for_tasks_that_compare_texts_only(workplace, base, llmkit):
    written(workplace, "the fox saw a hen ")
    words = ("finetune", "--task", "text-classification", f"model.name={base}", "data.path=rows.csv")
    done = llmkit(*words, "evaluation.language=zh", "--output-dir", "run")
    assert done.exit_code == 2
    assert "evaluation.language has no effect on text-classification" in done.stderr


def test_rows_in_a_script_that_the_tokenizer_cuts_into_bytes_are_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr(unknown_tokens, "BYTES", 0)
    monkeypatch.chdir(tmp_path)
    GPT2Config(vocab_size=300, bos_token_id=0, eos_token_id=0, n_embd=16, n_layer=1, n_head=2).save_pretrained("base")
    byte_tokenizer().save_pretrained("base")
    rows = {"zh": "房间很干净,好\n又脏又吵,差\n", "en": "clean and quiet,good\ndirty and loud,bad\n"}
    said = {}
    for name, lines in rows.items():
        (tmp_path / f"{name}.csv").write_text("text,label\n" + lines, encoding="utf-8")
        text = f'task = "text-classification"\n[model]\nname = "base"\n[data]\npath = "{name}.csv"\n'
        (tmp_path / "recipe.toml").write_text(text)
        said[name] = assemble(recipe.load("recipe.toml"), 42).warnings
    assert any("are only part of a character" in line for line in said["zh"])
    assert not any("part of a character" in line for line in said["en"])
