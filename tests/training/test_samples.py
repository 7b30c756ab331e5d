"""Samples while a model learns: training is the same with and without, and each task has prompts that suit it."""

import json
import os
import signal
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import CAUSAL, corpus

from llmkit.recipe import load
from llmkit.runs import compatibility
from llmkit.training import samples
from llmkit.training.samples import Heed, Sampler
from llmkit.training.trainer import Trainer

DROPOUT = ("model.config.resid_pdrop=0.1", "model.config.embd_pdrop=0.1")
EVALUATED = ("trainer.eval_strategy=steps", "trainer.eval_steps=2", "trainer.save_steps=3")
EACH = "samples.max_new_tokens=1"  # so few that each evaluation may have samples
REST = """
[data]
path = "rows.jsonl"
validation_fraction = 0.2
[trainer]
max_steps = 6
per_device_train_batch_size = 4
learning_rate = 1e-2
logging_steps = 1
"""
PAIRS = (
    """
task = "seq2seq"
[model.config]
model_type = "t5"
num_layers = 1
num_decoder_layers = 1
num_heads = 2
d_kv = 8
d_ff = 32
d_model = 16
dropout_rate = 0.1
[tokenizer]
type = "byte-bpe"
vocab_size = 400
"""
    + REST
)
CHAT = CAUSAL.replace("causal-lm", "chat").replace("n_positions = 32", "n_positions = 64").partition("[data]")[0] + REST
DENOISING = (
    PAIRS.partition("[data]")[0].replace("seq2seq", "denoising")
    + """
[data]
path = "corpus.txt"
sample_by = "line"
validation_fraction = 0.2
block_size = 16
corruption = { span_corruption = 1.0 }
"""
    + REST.partition("fraction = 0.2")[2]
)


@pytest.fixture
def place(workplace):
    """Recipes of the tasks that write, and what they learn from."""
    lines = corpus(40).splitlines()
    pairs = [{"source": line, "target": line.split(" of ")[0]} for line in lines]
    (workplace / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    chats = [
        {"messages": [{"role": "user", "content": f"Who, {n}?"}, {"role": "assistant", "content": line}]}
        for n, line in enumerate(lines)
    ]
    (workplace / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    (workplace / "pairs.toml").write_text(PAIRS)
    (workplace / "chat.toml").write_text(CHAT.replace("rows.jsonl", "chats.jsonl"))
    (workplace / "denoising.toml").write_text(DENOISING)
    return workplace


def entries(run):
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def written(run):
    """The samples of a run, by step."""
    return [(entry["step"], entry["samples"]) for entry in entries(run) if "samples" in entry]


def timeless(run):
    timed = ("time", "_runtime", "_per_second", "_preparation_time")
    return [{key: value for key, value in entry.items() if not key.endswith(timed)} for entry in entries(run)]


def states(run):
    """The weights, and what a checkpoint keeps of optimizer and random numbers."""
    files = ("model.safetensors", "checkpoint-6/optimizer.safetensors", "checkpoint-6/process-0.safetensors")
    return [Path(run, file).read_bytes() for file in files]


def trained(llmkit, *words):
    done = llmkit(*words)
    assert done.exit_code == 0, done.stderr
    return done


# ---- training is the same ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sampling"),
    [
        (("pretrain", "causal.toml", *DROPOUT), "generation.temperature=1.5"),
        (("pretrain", "causal.toml", *DROPOUT, "speed.fast_dropout=false"), "generation.num_beams=2"),
        (("finetune", "pairs.toml"), "generation.do_sample=true"),
    ],
)
def test_weights_and_random_numbers_are_the_same_with_samples_and_without(words, sampling, place, llmkit):
    words = (*words, *EVALUATED, sampling, "--output-dir")
    trained(llmkit, *words, "with", EACH)
    trained(llmkit, *words, "without", "samples.prompts=[]")
    assert [step for step, _ in written("with")] == [2, 4, 6]
    assert written("without") == []
    assert states("with") == states("without")
    losses, others = ([e for e in timeless(run) if "samples" not in e] for run in ("with", "without"))
    assert losses == others


def test_a_model_is_left_as_it_was(place, llmkit, monkeypatch):
    write, seen = Sampler.write, []

    def watched(self, model, *args, **kwargs):
        def state():
            config = model.generation_config.to_dict(), model.config.to_dict()
            return config, [module.training for module in model.modules()], torch.get_rng_state().tolist()

        model.train()
        before = state()
        found = write(self, model, *args, **kwargs)
        seen.append((before[:2] == state()[:2], before[2] != state()[2]))
        return found

    monkeypatch.setattr(Sampler, "write", watched)
    trained(llmkit, "pretrain", "causal.toml", *EVALUATED, EACH)
    assert seen == [(True, True)] * 3  # it does draw, and who calls it restores that


@pytest.mark.parametrize("at", [2, 6])
def test_a_signal_while_samples_are_written_is_one_in_an_evaluation(at, place, llmkit, monkeypatch):
    """Also behind the last step, where the run goes on with nothing but the samples of its end."""
    words = ("pretrain", "causal.toml", *DROPOUT, *EVALUATED, "samples.max_new_tokens=8", "--output-dir")
    trained(llmkit, *words, "whole")
    heed, calls = Trainer._heed, []

    def stopped(self):
        calls.append(self.state.global_step)
        if calls.count(at) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        heed(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_heed", stopped)
        assert llmkit(*words, "parts").exit_code == 75
    assert at not in [step for step, _ in written("parts")]
    trained(llmkit, *words, "parts", "--resume")
    assert timeless("parts") == timeless("whole")
    assert states("parts") == states("whole")
    assert calls.count(at) == 2  # it ends at the token, not behind the text


def test_without_validation_data_the_end_has_samples_of_the_training_data(place, llmkit, monkeypatch):
    words = ("pretrain", "causal.toml", "data.validation_fraction=", EACH, "--output-dir")
    done = trained(llmkit, *words, "whole")
    assert [step for step, _ in written("whole")] == [6]
    assert done.stderr.count("\nsample   ") == len(written("whole")[0][1]) == 3
    heed = Heed.__call__

    def stopped(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return heed(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Heed, "__call__", stopped)
        assert llmkit(*words, "parts").exit_code == 75
    trained(llmkit, *words, "parts", "--resume")
    assert written("parts") == written("whole")


def test_the_best_weights_have_samples_of_their_own(place, llmkit):
    words = ("trainer.load_best_model_at_end=true", "trainer.learning_rate=3.0", "trainer.save_steps=2")
    trained(llmkit, "pretrain", "causal.toml", *EVALUATED, EACH, *words, "--output-dir", "run")
    assert [step for step, _ in written("run")] == [2, 4, 6, 6]


@pytest.mark.long
def test_two_processes_write_together_and_once(place, two_processes):
    """Rank 1 would wait for ever if the other ended before it; the signal is heeded by both."""
    words = ("pretrain", "causal.toml", *EVALUATED, EACH, "trainer.per_device_train_batch_size=4", "--output-dir")
    done = two_processes(*words, "run")
    assert done.exit_code == 0, done.stderr
    assert [step for step, _ in written("run")] == [2, 4, 6]
    assert done.stderr.count("sample   ") == 9
    plain = two_processes(*words, "plain", "samples.prompts=[]")
    assert plain.exit_code == 0, plain.stderr
    assert states("run") == states("plain")


def test_what_fails_in_writing_costs_the_samples_and_not_the_run(place, llmkit, monkeypatch):
    def failing(self, *args, **kwargs):
        raise RuntimeError("probability tensor contains either `inf`,\n `nan` or element < 0")

    monkeypatch.setattr(Sampler, "write", failing)
    done = trained(llmkit, "pretrain", "causal.toml", *EVALUATED, EACH, "--output-dir", "run")
    assert done.stderr.count("warning  no samples from here on: probability tensor contains either `inf`, `nan`") == 1
    assert written("run") == []


def test_frequent_evaluations_have_samples_now_and_then_and_that_is_said(place, llmkit):
    words = ("pretrain", "causal.toml", *EVALUATED, "trainer.max_steps=8", "--output-dir")
    done = trained(llmkit, *words, "run", "samples.max_new_tokens=3")  # 5 steps
    assert [step for step, _ in written("run")] == [2, 8]
    assert "note     samples are written 5 steps apart at least" in done.stderr
    done = trained(llmkit, *words, "other", "samples.max_new_tokens=3", "trainer.gradient_accumulation_steps=4")
    assert [step for step, _ in written("other")] == [2, 4, 6, 8]
    assert "steps apart" not in done.stderr


# ---- what is shown -------------------------------------------------------------------------------------------------


def test_samples_are_lines_on_the_terminal_and_whole_in_the_log(place, llmkit):
    prompts = 'samples.prompts=["the fox", "", "the owl led 3 of the hens"]'
    done = trained(llmkit, "pretrain", "causal.toml", *EVALUATED, prompts, "--output-dir", "run")
    assert [step for step, _ in written("run")] == [2, 6]  # 100 steps apart, and at the end
    assert [sample["prompt"] for sample in written("run")[0][1]] == ["the fox", "", "the owl led 3 of the hens"]
    assert all(set(sample) == {"prompt", "text"} for _, found in written("run") for sample in found)
    lines = [line for line in done.stderr.splitlines() if line.startswith("sample ")]
    assert len(lines) == 6
    assert lines[0].startswith("sample   the fox | ")
    assert all(len(line) <= 80 for line in lines)
    at = done.stderr.splitlines().index(lines[0])
    assert "eval_loss" in done.stderr.splitlines()[at - 1]
    trained(llmkit, "pretrain", "causal.toml", *EVALUATED, prompts, "--output-dir", "again")
    assert written("again") == written("run")  # the seed decides


@pytest.mark.parametrize("width", [40, 80])
def test_a_line_fits_whatever_is_written(width):
    text = "The 猫 sat\n\x1b[31m on the mat " * 9
    for sample in (
        {"prompt": text, "text": text},
        {"prompt": "", "text": ""},
        {"prompt": text, "text": text, "target": text},
    ):
        line = samples.line(sample, width)
        assert samples.columns_of(line) <= width
        assert line.isprintable()
    assert samples.line({"prompt": "a", "text": "b", "target": "c"}, 80) == "b | target: c"
    asked = samples.line({"prompt": "A long story. " * 9 + "Who saw it?", "text": "A fox."}, width)
    assert asked.startswith("...")
    assert asked.endswith(" Who saw it? | A fox.")


def test_by_default_a_text_begins_as_held_out_documents_do(place, llmkit):
    trained(llmkit, "pretrain", "causal.toml", "--output-dir", "run")
    ((_, found),) = written("run")
    held_out = [line for line in corpus().splitlines() if any(line.startswith(s["prompt"]) for s in found)]
    assert len(found) == len({sample["prompt"] for sample in found}) == 3
    assert len(held_out) >= 3
    assert all(sample["prompt"].split() == sample["prompt"].strip().split() for sample in found)
    assert all(f"{sample['prompt']} " in corpus() for sample in found)  # no word is cut


def test_documents_that_begin_alike_give_way_to_others(place, llmkit):
    (place / "alike.txt").write_text(
        "".join(f"{'once upon a time there was a ' * (n % 6 > 0)}{n} foxes and {n} owls, who met\n" for n in range(90))
    )
    trained(
        llmkit, "pretrain", "causal.toml", "data.path=alike.txt", "data.validation_fraction=0.4", "--output-dir", "run"
    )
    ((_, found),) = written("run")
    assert len({sample["prompt"] for sample in found}) == 3


def test_one_long_text_is_begun_at_its_lines(place, llmkit):
    words = ("data.sample_by=document", "data.validation_from=end", "data.validation_fraction=0.5")
    trained(llmkit, "pretrain", "causal.toml", *words, "--output-dir", "run")
    ((_, found),) = written("run")
    assert len(found) == 3
    assert all(any(line.startswith(s["prompt"]) for line in corpus().splitlines()) for s in found[1:])


def test_a_conversation_is_begun_with_its_question(place, llmkit):
    trained(llmkit, "finetune", "chat.toml", "--output-dir", "run")
    ((_, found),) = written("run")
    assert len(found) == 3
    assert all(sample["prompt"].startswith("Who, ") for sample in found)
    assert all("User:" not in sample["prompt"] for sample in found)
    own = ("samples.prompts=['Who saw it?']", "data.system_prompt='Be brief.'", "--output-dir", "own")
    trained(llmkit, "finetune", "chat.toml", *own)
    assert [sample["prompt"] for sample in written("own")[0][1]] == ["Who saw it?"]


def test_pairs_have_what_was_to_be_written_beside_it(place, llmkit):
    done = trained(llmkit, "finetune", "pairs.toml", "--output-dir", "run")
    ((_, found),) = written("run")
    assert len(found) == 3
    assert all(sample["prompt"].startswith(sample["target"]) for sample in found)
    assert all(sample["prompt"] in corpus(40).splitlines() for sample in found)
    assert f"| target: {found[0]['target']}" in done.stderr
    trained(llmkit, "finetune", "pairs.toml", "samples.prompts=['the fox saw 1']", "--output-dir", "own")
    assert [set(sample) for sample in written("own")[0][1]] == [{"prompt", "text"}]


def test_denoising_shows_the_blanks_of_a_text(place, llmkit):
    trained(llmkit, "pretrain", "denoising.toml", "--output-dir", "run")
    ((_, found),) = written("run")
    assert len(found) == 3
    for sample in found:
        assert "<extra_id_0>" in sample["prompt"]
        assert sample["target"].startswith("<extra_id_0>")
        assert "</s>" not in sample["prompt"] + sample["target"]


def test_a_stream_without_validation_data_begins_with_no_text(place, llmkit):
    words = ("data.streaming=true", "data.validation_fraction=", "--output-dir", "run")
    trained(llmkit, "pretrain", "causal.toml", *words)
    assert [sample["prompt"] for sample in written("run")[0][1]] == [""]


# ---- recipes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "file", "prompts", "said"),
    [
        ("pretrain", "causal.toml", ["the fox " * 40], "tokens, and the model reads 31 at most\nhint: shorten it"),
        ("finetune", "chat.toml", ["the fox " * 80], "tokens, and the model reads 63 at most"),
        ("finetune", "pairs.toml", ["the fox " * 400], "tokens, and the model reads 512 at most"),
        ("finetune", "chat.toml", [" "], "samples.prompts: a question is empty"),
        ("finetune", "pairs.toml", ["a", ""], "samples.prompts: a text is empty"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_before_the_first_step(command, file, prompts, said, place, llmkit):
    done = llmkit(command, file, f"samples.prompts={json.dumps(prompts)}", "--output-dir", "run")
    assert done.exit_code == 2
    assert said in done.stderr
    assert not Path("run", "metrics.jsonl").exists()


def test_a_prompt_of_which_the_tokenizer_makes_nothing_is_refused():
    def nothing(text, **options):
        return {"input_ids": []}

    with pytest.raises(samples.UserError, match="the tokenizer makes no token of `hm`"):
        samples._tokens("hm", nothing)


def test_a_task_that_writes_nothing_has_no_samples(place, llmkit):
    done = llmkit("pretrain", "masked.toml", "samples.prompts=[]")
    assert done.exit_code == 2
    assert "samples: belongs to the tasks that generate text: causal-lm, denoising, seq2seq, chat" in done.stderr
    assert load("masked.toml").samples is None


def test_the_saved_recipe_says_what_was_asked_for(place, llmkit):
    trained(llmkit, "pretrain", "causal.toml", "trainer.max_steps=1", "--output-dir", "run")
    assert tomllib.loads(Path("run/recipe.toml").read_text())["samples"] == {"max_new_tokens": 60}
    assert load("run/recipe.toml").samples.prompts is None
    assert load("causal.toml", ["samples.prompts=[]"]).samples.prompts == ()


def test_a_run_from_before_there_were_samples_goes_on_without(place, llmkit):
    trained(llmkit, "pretrain", "causal.toml", "trainer.max_steps=2", "--output-dir", "run")
    saved = Path("run/recipe.toml")
    older = saved.read_text().replace("[samples]\nmax_new_tokens = 60  # default\n", "")
    assert "samples" not in older
    saved.write_text(older)
    record = json.loads(Path("run/run.json").read_text())
    del record["settings"]["samples"]
    Path("run/run.json").write_text(json.dumps(record))
    assert load("run/recipe.toml").samples.prompts == ()
    assert compatibility.as_begun(load("causal.toml"), Path("run")).samples.prompts == ()
    asked = load("causal.toml", ["samples.prompts=['the fox']"])
    assert compatibility.as_begun(asked, Path("run")).samples.prompts == ("the fox",)
    assert compatibility.since(Path("run"), asked) == [("trainer.max_steps", 2, 6)]


def test_the_interval_is_a_share_of_the_time():
    one = Sampler([], SimpleNamespace(), 60)
    assert (one.interval(1), one.interval(4), one.interval(10_000)) == (100, 25, 1)
