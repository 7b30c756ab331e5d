"""How a warm-up and a decay are fitted into a run, and what another length makes of the learning rate."""

import json
import re
from pathlib import Path

import pytest

from llmkit.runs import directory as runs
from llmkit.training.schedule import Schedule


def wsd(warmup, decay):
    return Schedule("warmup_stable_decay", warmup=warmup, settings={"num_decay_steps": decay})


@pytest.mark.parametrize(
    ("schedule", "steps", "parts"),
    [
        (Schedule("linear", warmup=50), 100, (50, {})),
        (Schedule("linear", warmup=700), 100, (10, {})),
        (Schedule("cosine", warmup=100), 100, (10, {})),
        (Schedule("cosine", warmup=0.06), 50, (3, {})),
        (Schedule("cosine", warmup=0.03), 1, (0, {})),
        (Schedule("constant", warmup=700), 100, (700, {})),
        (Schedule("linear", warmup=700, fits=False), 100, (700, {})),
        (wsd(50, 150), 100, (25, {"num_decay_steps": 75})),
        (wsd(50, 50), 100, (50, {"num_decay_steps": 50})),
        (wsd(0.1, 0.35), 200, (20, {"num_decay_steps": 70})),
    ],
)
def test_what_does_not_fit_is_scaled(schedule, steps, parts):
    warmup, settings, words = schedule.parts(steps)
    assert (warmup, settings) == parts
    assert bool(words) == (schedule.fits and schedule.kind != "constant" and steps in (1, 100) and warmup != 50)


def test_rates_that_another_length_leaves_as_they_were():
    stable = wsd(2, 4)
    assert stable.is_same(10, 20, 6) and not stable.is_same(10, 20, 8)
    shares = wsd(0.2, 0.4)
    assert shares.is_same(10, 20, 6, warm=True) and not shares.is_same(10, 20, 6)
    assert not shares.is_same(10, 20, 8, warm=True) and not shares.is_same(10, 20, 3, warm=True)
    assert Schedule("constant").is_same(10, 20, 10)
    assert not Schedule("cosine").is_same(10, 20, 10)
    assert Schedule("reduce_lr_on_plateau").is_same(10, 20, 10)


def test_a_run_says_what_it_scaled_and_a_resume_repeats_it(workplace, llmkit):
    words = ("pretrain", "causal.toml", "trainer.warmup_steps=700", "--output-dir", "run")
    done = llmkit(*words, "trainer.max_steps=20")
    assert done.exit_code == 0, done.stderr
    assert "does not fit into 20 steps and is scaled: trainer.warmup_steps = 700 becomes 2" in done.stderr
    entries = [json.loads(line) for line in (workplace / "run/metrics.jsonl").read_text().splitlines()]
    assert max(entry.get("learning_rate", 0) for entry in entries) == 0.01
    assert json.loads((workplace / "run/run.json").read_text())["schedule"] == {"steps": 20, "warmup_steps": 2}


def test_the_dry_run_shows_the_scaled_warmup(workplace, llmkit):
    done = llmkit("pretrain", "causal.toml", "trainer.warmup_steps=700", "trainer.max_steps=20", "--dry-run")
    assert "over 2 steps, then linear" in done.stderr
    assert "trainer.warmup_steps = 700 becomes 2" in " ".join(done.stderr.split())


def test_a_text_that_is_repeated_too_often_is_told(workplace, llmkit):
    Path("corpus.txt").write_text("the fox saw the owl and the owl saw the fox again\n" * 16)
    words = ("pretrain", "causal.toml", "trainer.eval_strategy=no", "data.validation_fraction=")
    done = llmkit(*words, "trainer.max_steps=400", "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    said = " ".join(done.stderr.split())
    hint = re.search(r"far more than so little text can teach; try ((?:[a-z_.]+=\S* ?){3})", said)
    assert hint is not None
    assert hint[1].split() == ["trainer.max_steps=", "trainer.num_train_epochs=10", "data.global_batch_size=8"]
    done = llmkit(*words, *hint[1].split(), "--output-dir", "shorter")
    assert done.exit_code == 0, done.stderr
    assert "so little text" not in done.stderr
    assert runs.read_record(Path("shorter"))["steps"] <= 100
