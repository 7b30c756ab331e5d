"""What a run says of the texts that it reads, and keeps in its record."""

import json

import pytest
from conftest import corpus

from llmkit import disk, verified
from llmkit.data.text import documents, token_cache
from llmkit.recipe import load
from llmkit.training.assemble import assemble

SPLITS = ("train", "valid", "test")


@pytest.fixture
def folder(workplace):
    """A data set as it is cloned: a table for each split, and what describes them."""
    (workplace / "stories").mkdir()
    for number, split in enumerate(SPLITS):
        lines = corpus(300).splitlines()[number * 100 : number * 100 + 100]
        rows = [{"id": n, "text": "" if n < 3 else 5 if n == 4 else line} for n, line in enumerate(lines)]
        (workplace / f"stories/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (workplace / "stories/README.md").write_text("what it is")
    return workplace


def pretrain(llmkit, *words):
    done = llmkit("pretrain", "causal.toml", "data.path=stories", "trainer.max_steps=1", *words)
    assert done.exit_code == 0, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith(("data", "note"))]


def test_splits_columns_and_rows_left_out_are_said_in_every_run(folder, llmkit):
    said = pretrain(llmkit)
    path, place = f"`{folder / 'stories'}`", folder / "stories"
    assert "data     column `text` is the text, not used: `id`" in said
    for line in (
        f"{path}: splits by file name: train (train.jsonl), valid (valid.jsonl); not read: test (test.jsonl), "
        "README.md",
        f"3 rows left out: empty text, such as `{place / 'train.jsonl'}`, line 1",
        f"1 row left out: no text in `text`, such as `{place / 'valid.jsonl'}`, line 5",
    ):
        assert f"note     {line}" in said
    record = json.loads((folder / "runs/causal/run.json").read_text())["data"]
    assert record["left_out"] == {"no text in `text`": 2, "empty text": 6}
    assert (record["train"]["documents"], record["validation"]["documents"]) == (96, 96)
    assert pretrain(llmkit, "--output-dir", "again") == said  # the tokens are in the cache now
    notes = {line for line in said if line.startswith("note")}
    for name in ("first", "second"):  # which reads what the first one cleaned
        cleaned = pretrain(llmkit, "data.clean.whitespace=true", "tokenizer.vocab_size=280", "--output-dir", name)
        assert notes <= set(cleaned)


def test_running_text_in_a_language_that_the_model_does_not_know_is_warned_of(workplace, base, llmkit):
    (workplace / "chinese.txt").write_text("这家酒店的房间很干净，服务也很好。\n" * 200)
    (workplace / "recipe.toml").write_text(
        f'task = "masked-lm"\n[model]\nname = "{base}"\n[data]\npath = "chinese.txt"\nsample_by = "line"\n'
        "block_size = 16\n[trainer]\nmax_steps = 1\n"
    )
    done = llmkit("pretrain", "recipe.toml", "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    assert "of the tokens are `[UNK]`" in done.stderr
    assert "xlm-roberta-base (278M parameters)" in done.stderr
    assert json.loads((workplace / "run/run.json").read_text())["tokenizer"]["unknown"] > 0.5
    dry = llmkit("pretrain", "recipe.toml", "--dry-run")
    assert "of the tokens are `[UNK]`" in dry.stderr


@pytest.mark.parametrize("words", [(), ("data.validation_from=end",), ("data.clean.repair=true",)])
def test_a_rank_reads_nothing_of_what_its_parent_has_verified(words, workplace, monkeypatch):
    """Neither corpus nor tokens nor cleaned text: a start on many processes read each in each of them."""
    recipe = load("causal.toml", words, None, None, "pretrain")
    before = assemble(recipe, 42)
    saved = verified.save()
    monkeypatch.setattr(verified, "_found", {})
    verified.restore(saved)
    for module, name in ((documents.files, "content_hash"), (token_cache, "_whole_parts"), (disk, "checksum")):
        monkeypatch.setattr(module, name, lambda *args, name=name: pytest.fail(f"{name} was called"))
    after = assemble(recipe, 42)
    assert after.record == before.record
    assert (after.train[0].ids == before.train[0].ids).all()
