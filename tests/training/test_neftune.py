"""NEFTune: noise on the embeddings in training, none in an evaluation, and the same noise when a run goes on."""

import json
import os
import signal

import pytest
from conftest import CAUSAL, losses

from llmkit.training.progress import MetricsFile

NOISE = "trainer.neftune_noise_alpha=20"
STEPS = ("trainer.eval_strategy=steps", "trainer.eval_steps=2", "trainer.save_steps=3", "trainer.save_total_limit=9")
TASKS = {
    "causal": ("pretrain", "causal.toml", "samples.max_new_tokens=2"),
    "masked": ("pretrain", "masked.toml"),
    "adapter": ("pretrain", "causal.toml", "model.config=", "tokenizer=", "model.name=base", "model.init=pretrained"),
    "classes": ("finetune", "classes.toml"),
}
MORE = {"adapter": ("lora.r=4", "lora.lora_dropout=0.1")}
CLASSES = """task = "text-classification"
[model]
name = "base"
[data]
path = "rows.jsonl"
validation_fraction = 0.2
[trainer]
max_steps = 6
per_device_train_batch_size = 8
learning_rate = 1e-3
logging_steps = 1
"""


def stop_at(monkeypatch, step):
    """SIGTERM comes when this step is logged: the one after it is the last."""
    logged = MetricsFile.on_log

    def on_log(self, args, state, control, **kwargs):
        logged(self, args, state, control, **kwargs)
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsFile, "on_log", on_log)


def evaluations(run):
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {entry["step"]: entry["eval_loss"] for entry in entries if "eval_loss" in entry}


@pytest.fixture
def place(workplace, llmkit):
    rows = [{"text": f"the {'fox' if i % 3 else 'hen'} {i}", "label": "ab"[i % 3 == 0]} for i in range(100)]
    (workplace / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (workplace / "classes.toml").write_text(CLASSES)
    (workplace / "causal.toml").write_text(CAUSAL)
    assert llmkit("pretrain", "causal.toml", "trainer.max_steps=2", "--output-dir", "base").exit_code == 0
    return workplace


@pytest.mark.parametrize("task", TASKS)
def test_noise_is_off_in_an_evaluation_and_exact_where_a_run_goes_on(task, place, llmkit, monkeypatch):
    words = (*TASKS[task], *MORE.get(task, ()), *STEPS)
    for name, more in (("noisy", (NOISE,)), ("again", (NOISE,)), ("plain", ())):
        done = llmkit(*words, *more, "--output-dir", name)
        assert done.exit_code == 0, done.stderr
    noisy, again, plain = (place / name for name in ("noisy", "again", "plain"))
    assert losses(noisy) == losses(again)
    assert losses(noisy) != losses(plain)  # there is noise

    # What is measured in training, with the noise set, is what the weights give without it.
    found = json.loads(llmkit("evaluate", "noisy").stdout)
    assert found["eval_loss"] == pytest.approx(evaluations(noisy)[6], rel=1e-6)

    # Stopped behind step 3, it goes on to the same bytes.
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert llmkit(*words, NOISE, "--output-dir", "parts").exit_code == 75
    done = llmkit(*words, NOISE, "--output-dir", "parts", "--resume")
    assert "resuming from parts/checkpoint-" in done.stderr
    assert losses(place / "parts") == losses(noisy)
    assert evaluations(place / "parts") == evaluations(noisy)
    (weights,) = [path.name for path in noisy.glob("*model.safetensors")]
    assert (place / "parts" / weights).read_bytes() == (noisy / weights).read_bytes()
