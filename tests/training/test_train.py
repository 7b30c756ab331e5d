"""The story of a run: what it leaves, what it refuses, how it stops and goes on."""

import json
import os
import shutil
import signal
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import losses
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from llmkit.recipe import load
from llmkit.training import arguments
from llmkit.training.progress import MetricsFile


def record(run):
    return json.loads((run / "run.json").read_text())


def test_a_run_directory_explains_itself(workplace, llmkit):
    done = llmkit("pretrain", "causal.toml", "trainer.save_steps=3")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == ""
    run = workplace / "runs/causal"
    names = {path.name for path in run.iterdir()}
    assert names >= {"recipe.toml", "run.json", "metrics.jsonl", "model.safetensors", "config.json", "README.md"}
    assert names >= {"tokenizer.json", "generation_config.json", "checkpoint-3", "checkpoint-6"}
    facts = record(run)
    assert facts["status"] == "finished"
    assert facts["parameters"] == AutoModelForCausalLM.from_pretrained(run).num_parameters()
    assert facts["precision"] == "fp32"
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["metrics"]["eval_loss"] > 0
    assert facts["settings"]["trainer"]["save_steps"] == 3
    started, ended = (datetime.fromisoformat(facts[key]) for key in ("started", "finished"))
    assert timedelta(0) < ended - started < timedelta(hours=1)
    assert started.utcoffset() == timedelta(0)
    assert facts["data"]["train"]["documents"] + facts["data"]["validation"]["documents"] == 200
    assert load(str(run / "recipe.toml")) == load("causal.toml", ["trainer.save_steps=3"])
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    assert AutoTokenizer.from_pretrained(run)("the fox").input_ids
    assert "eval_loss" in (run / "README.md").read_text()
    assert not [path for path in run.rglob("*") if str(workplace) in path.name]


def test_a_masked_run_loads_in_plain_transformers(workplace, llmkit):
    assert llmkit("pretrain", "masked.toml").exit_code == 0
    model = AutoModelForMaskedLM.from_pretrained("runs/masked")
    tokenizer = AutoTokenizer.from_pretrained("runs/masked")
    logits = model(**tokenizer(f"the {tokenizer.mask_token} saw", return_tensors="pt")).logits
    assert logits.shape[-1] == len(tokenizer)
    assert not (workplace / "runs/masked/generation_config.json").exists()


def test_the_snippet_of_the_model_card_loads_this_model(workplace, llmkit):
    """`gpt2` alone would be OpenAI's, and so would be a folder outside of this one by its name."""
    (workplace / "here").mkdir()
    os.chdir("here")
    for directory, shown in (("gpt2", "./gpt2"), ("../gpt2", str(workplace / "gpt2"))):
        assert llmkit("pretrain", "../causal.toml", "trainer.max_steps=1", "--output-dir", directory).exit_code == 0
        snippet = (Path(directory) / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
        assert f'path = "{shown}"' in snippet
        made: dict[str, Any] = {}
        exec(snippet, made)
        assert made["model"].config.n_embd == 32
        assert len(made["tokenizer"]) == 300


def test_a_run_keeps_paths_as_typed_and_finds_its_data_from_anywhere(workplace, llmkit, tmp_path_factory, monkeypatch):
    assert llmkit("pretrain", "causal.toml", "data.path=corpus.txt", "trainer.max_steps=1").exit_code == 0
    saved = (workplace / "runs/causal/recipe.toml").read_text()
    assert f'path = "corpus.txt"  # command line; {workplace}/corpus.txt' in saved
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    found = llmkit("evaluate", str(workplace / "runs/causal"))
    assert found.exit_code == 0, found.stderr
    assert load(str(workplace / "runs/causal/recipe.toml")).data.path == str(workplace / "corpus.txt")
    shutil.copytree(workplace / "runs", elsewhere / "runs")  # to another machine, with the data
    (workplace / "corpus.txt").rename(elsewhere / "corpus.txt")
    copied = llmkit("evaluate", "runs/causal")
    assert (copied.exit_code, copied.stdout) == (0, found.stdout)
    assert f"is not on this machine; reading `{elsewhere}/corpus.txt` instead" in copied.stderr
    again = llmkit("pretrain", "runs/causal/recipe.toml", "--output-dir", "again")
    assert again.exit_code == 0, again.stderr
    assert 'path = "corpus.txt"  # recipe line' in (elsewhere / "again/recipe.toml").read_text()


def test_the_same_line_twice_makes_two_runs(workplace, llmkit):
    for _ in range(2):
        assert llmkit("pretrain", "causal.toml", "trainer.max_steps=2").exit_code == 0
    assert sorted(path.name for path in (workplace / "runs").iterdir()) == ["causal", "causal-2"]
    assert losses(workplace / "runs/causal") == losses(workplace / "runs/causal-2")


def test_resuming_a_finished_run_says_so(workplace, llmkit):
    llmkit("pretrain", "causal.toml", "trainer.max_steps=2")
    before = {path: path.stat().st_mtime_ns for path in (workplace / "runs").rglob("*")}
    done = llmkit("pretrain", "causal.toml", "trainer.max_steps=2", "--resume")
    assert done.exit_code == 0
    assert "is finished" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in (workplace / "runs").rglob("*")} == before


def test_resume_with_nothing_to_resume_starts(workplace, llmkit):
    done = llmkit("pretrain", "causal.toml", "trainer.max_steps=2", "--resume")
    assert done.exit_code == 0
    assert "starting from the beginning" in done.stderr
    assert record(workplace / "runs/causal")["status"] == "finished"


@pytest.mark.parametrize("kind", ["causal", "masked"])
@pytest.mark.parametrize(
    ("number", "code", "at"), [(signal.SIGTERM, 75, 3), (signal.SIGINT, 130, 13), (signal.SIGHUP, 75, 21)]
)
def test_a_stopped_run_goes_on_to_the_same_weights(kind, number, code, at, workplace, llmkit, monkeypatch):
    """40 steps of 8 blocks go over the data several times: the stop comes in the first epoch or in a later one."""
    words = ("pretrain", f"{kind}.toml", "trainer.max_steps=40")
    assert llmkit(*words, "--output-dir", "whole").exit_code == 0

    logged = MetricsFile.on_log

    def stop(self, args, state, control, **kwargs):
        logged(self, args, state, control, **kwargs)
        if state.global_step == at:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "on_log", stop)
        done = llmkit(*words, "--output-dir", "parts")
    assert done.exit_code == code, done.stderr
    assert record(workplace / "parts")["status"] == "stopped"
    assert not (workplace / "parts/model.safetensors").exists()
    assert llmkit(*words, "--output-dir", "parts", "--resume").exit_code == 0
    assert record(workplace / "parts")["status"] == "finished"
    assert (workplace / "parts/model.safetensors").read_bytes() == (workplace / "whole/model.safetensors").read_bytes()
    assert losses(workplace / "parts") == losses(workplace / "whole")


def test_a_signal_that_asks_for_a_checkpoint_lets_the_run_go_on(workplace, llmkit, monkeypatch):
    logged = MetricsFile.on_log

    def ask(self, args, state, control, **kwargs):
        logged(self, args, state, control, **kwargs)
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(MetricsFile, "on_log", ask)
    done = llmkit("pretrain", "causal.toml", "--output-dir", "run")
    assert done.exit_code == 0, done.stderr
    assert [path.name for path in (workplace / "run").glob("checkpoint-*")].count("checkpoint-4") == 1


def test_a_run_of_another_recipe_is_not_gone_on_with(workplace, llmkit):
    assert llmkit("pretrain", "causal.toml", "--output-dir", "run").exit_code == 0
    (workplace / "run/model.safetensors").unlink()
    done = llmkit("pretrain", "masked.toml", "--output-dir", "run", "--resume")
    assert done.exit_code == 2
    assert "was started with another recipe" in done.stderr
    assert "task: causal-lm -> masked-lm" in done.stderr


def test_a_run_that_fails_says_so_in_its_record(workplace, llmkit, monkeypatch):
    def broken(*args, **kwargs):
        raise ConnectionError("the tracker has gone")

    monkeypatch.setattr(MetricsFile, "on_log", broken)
    with pytest.raises(ConnectionError):
        llmkit("pretrain", "causal.toml")
    assert record(workplace / "runs/causal")["status"] == "failed"


def test_an_output_dir_in_the_recipe_is_numbered_too(workplace, llmkit):
    (workplace / "causal.toml").write_text('output_dir = "out/mine"\n' + (workplace / "causal.toml").read_text())
    for _ in range(2):
        assert llmkit("pretrain", "causal.toml", "trainer.max_steps=1").exit_code == 0
    assert sorted(path.name for path in (workplace / "out").iterdir()) == ["mine", "mine-2"]


def test_early_stopping_and_the_best_checkpoint_by_key(workplace, llmkit):
    """A learning rate that ruins the model: the second evaluation is worse, and the first one's weights are kept."""
    done = llmkit(
        *("pretrain", "causal.toml", "trainer.max_steps=40", "trainer.learning_rate=3.0", "--output-dir", "run"),
        *("trainer.eval_strategy=steps", "trainer.eval_steps=2", "trainer.save_steps=2", "trainer.save_total_limit=1"),
        *("trainer.load_best_model_at_end=true", "early_stopping.early_stopping_patience=2"),
        "trainer.lr_scheduler_type=constant",
    )
    assert done.exit_code == 0, done.stderr
    entries = [json.loads(line) for line in (workplace / "run/metrics.jsonl").read_text().splitlines()]
    evaluated = [entry["eval_loss"] for entry in entries if "eval_loss" in entry]
    assert max(entry["step"] for entry in entries) < 40
    assert record(workplace / "run")["metrics"]["eval_loss"] == pytest.approx(min(evaluated), rel=1e-5)


def test_an_adapter_on_pretrained_weights_leaves_them_alone(workplace, llmkit):
    from peft import PeftModel
    from safetensors.torch import load_file

    assert llmkit("pretrain", "causal.toml", "--output-dir", "base").exit_code == 0
    words = ("pretrain", "causal.toml", "model.config=", "tokenizer=", "model.name=base", "model.init=pretrained")
    done = llmkit(*words, "lora.r=4", "--output-dir", "adapted")
    assert done.exit_code == 0, done.stderr
    assert not (workplace / "adapted/model.safetensors").exists()
    facts = record(workplace / "adapted")
    assert 0 < facts["trainable_parameters"] < facts["parameters"]
    base = AutoModelForCausalLM.from_pretrained("base")
    adapted = PeftModel.from_pretrained(base, "adapted")
    weights = load_file("base/model.safetensors")
    inside = adapted.base_model.model.state_dict()
    for name, tensor in weights.items():
        kept = inside.get(name, inside.get(name.replace("c_attn.", "c_attn.base_layer.")))
        assert torch.equal(kept, tensor), name
    done = llmkit("generate", "the fox", "max_new_tokens=3", "--model", "adapted")
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.block_size=64"], "data.block_size = 64 is more than the 32 positions"),
        (["model.config.n_lay=3"], "model.config.n_lay: not in GPT2Config, did you mean `n_layer`?"),
        (["model.config.vocab_size=100"], "embeddings for only 100"),
        (["model.config.n_head=3"], "[model]:"),
        (["model.config.n_head=0"], "model.config.n_head: must be at least 1, not 0"),
        (['model.config.n_layer="three"'], "model.config.n_layer = 'three'"),
        (['model.config.activation_function="geluu"'], "geluu"),
        (['model.config.model_type="gpt22"'], "transformers has no model type `gpt22`"),
        (["data.text_column=story", "data.path=rows.csv"], "has no column `story`"),
        (["data.path=empty.txt"], "there is no text in it"),
        (["data.path=short.txt", "data.validation_fraction="], "less than one block"),
        (["data.path=latin.txt"], "line 2: byte 0xe9 is not utf-8"),
        (["trainer.eval_strategy=steps", "data.validation_fraction="], "there is no validation data"),
        (["trainer.train_sampling_strategy=group_by_length"], "all blocks have the same length"),
        (["trainer.logging_steps=0"], "[trainer]:"),
        (["trainer.report_to=comet_ml"], "trainer.report_to: the package of `comet_ml` is not installed"),
        (["tokenizer=", "model.config=", "model.name=nowhere/at-all"], "`nowhere/at-all`"),
        (["--output-dir", "full"], "already contains other files"),
        (["--output-dir", "corpus.txt/run"], "cannot be written"),
        (["--accelerate-config", "none.yaml"], "there is no file `none.yaml`"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(words, said, workplace, llmkit, no_network):
    (workplace / "rows.csv").write_text("text,label\na,1\n")
    (workplace / "empty.txt").write_text("")
    (workplace / "short.txt").write_text("a b\n")
    (workplace / "latin.txt").write_bytes(b"good\ncaf\xe9\n")
    (workplace / "full").mkdir()
    (workplace / "full/notes.txt").write_text("mine")
    before = sorted(workplace.rglob("*"))
    done = llmkit("pretrain", "causal.toml", *words)
    assert done.exit_code == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert sorted(workplace.rglob("*")) == before


def test_another_run_is_never_overwritten(workplace, llmkit):
    assert llmkit("pretrain", "causal.toml", "trainer.max_steps=1", "--output-dir", "run").exit_code == 0
    weights = (workplace / "run/model.safetensors").read_bytes()
    done = llmkit("pretrain", "causal.toml", "trainer.max_steps=2", "--output-dir", "run")
    assert done.exit_code == 2
    assert "already contains another run" in done.stderr
    assert (workplace / "run/model.safetensors").read_bytes() == weights


def test_output_dir_on_the_command_line_wins(workplace, llmkit):
    llmkit("pretrain", "causal.toml", "trainer.max_steps=1", "output_dir=here", "--output-dir", "there")
    assert (workplace / "there/run.json").exists()
    assert not (workplace / "here").exists()


def test_a_stream_trains_like_the_file(workplace, llmkit):
    done = llmkit("pretrain", "causal.toml", "data.streaming=true", "data.max_eval_samples=4", "--output-dir", "stream")
    assert done.exit_code == 0, done.stderr
    assert record(workplace / "stream")["metrics"]["eval_loss"] > 0
    assert len(losses(workplace / "stream")) == 6


@pytest.mark.parametrize(
    ("settings", "cuda", "fast", "expected"),
    [
        ({}, False, True, {}),
        ({}, True, True, {"bf16": True}),
        ({}, True, False, {}),
        ({"bf16": True}, False, True, {"bf16": True, "use_cpu": True}),
        ({"bf16": True}, False, False, {"bf16": False, "fp16": False}),
        ({"fp16": True}, False, True, {"bf16": False, "fp16": False}),
        ({"bf16": False}, True, True, {"bf16": False}),
        ({"use_cpu": True}, True, True, {"use_cpu": True}),
    ],
)
def test_half_precision_only_where_it_is_fast(settings, cuda, fast, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: fast)
    monkeypatch.setattr(arguments, "has_fast_bf16", lambda: fast)
    chosen, why = arguments.choose_precision(dict(settings))
    assert chosen == expected
    assert why


@pytest.mark.parametrize("task", ["causal", "masked"])
def test_what_makes_a_run_faster_leaves_its_losses_as_they_are(task, workplace, llmkit, monkeypatch):
    monkeypatch.setattr("llmkit.speed.fused_loss.AT_ONCE", 3000)  # ten positions at a time
    words = ("pretrain", f"{task}.toml", "trainer.gradient_accumulation_steps=2", "--output-dir")
    for off in ("", "fused_loss", "skip_ignored"):
        run = off or "on"
        done = llmkit(*words, run, *([f"speed.{off}=false"] if off else []))
        assert done.exit_code == 0, done.stderr
        speed = record(workplace / run)["speed"]
        assert {key: speed[key] for key in ("fused_loss", "skip_ignored")} == {
            "fused_loss": off != "fused_loss",
            "skip_ignored": off != "skip_ignored",
        }
        assert losses(workplace / run) == pytest.approx(losses(workplace / "on"), rel=1e-5)
        first, second = (record(workplace / name)["metrics"]["eval_loss"] for name in ("on", run))
        assert second == pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", pytest.param("bert", marks=pytest.mark.long)])
def test_activation_checkpointing_leaves_the_losses_as_they_are(kind, workplace, llmkit):
    words = ("pretrain", {"gpt2": "causal.toml", "bert": "masked.toml"}[kind], "--output-dir")
    assert llmkit(*words, "without").exit_code == 0
    done = llmkit(*words, "with", "trainer.activation_checkpointing=true")
    assert done.exit_code == 0, done.stderr
    assert record(workplace / "with")["speed"]["activation_checkpointing"]
    assert losses(workplace / "with") == pytest.approx(losses(workplace / "without"), rel=1e-5)


@pytest.mark.long
def test_a_compiled_model_is_left_as_it_is(workplace, llmkit):
    words = ("pretrain", "causal.toml", "trainer.max_steps=2", "--output-dir")
    assert llmkit(*words, "plain").exit_code == 0
    done = llmkit(*words, "compiled", "trainer.torch_compile=true", "trainer.torch_compile_backend=eager")
    assert done.exit_code == 0, done.stderr
    speed = record(workplace / "compiled")["speed"]
    assert speed["torch_compile"]
    assert not speed["fused_loss"] and not speed["skip_ignored"]
    assert losses(workplace / "compiled") == pytest.approx(losses(workplace / "plain"), rel=1e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"dataloader_pin_memory": False, "ddp_find_unused_parameters": True}, arguments.SEVERAL_TASKS]
)
def test_what_a_recipe_says_comes_before_what_fits(settings, tmp_path):
    args = arguments.training_arguments({"use_cpu": True, **settings}, tmp_path)
    assert {key: getattr(args, key) for key in settings} == settings
    assert args.ddp_find_unused_parameters == settings.get("ddp_find_unused_parameters", False)


@pytest.mark.parametrize("asked", [True, False])
def test_dropout_is_fast_unless_the_recipe_says_no(asked, workplace, llmkit):
    words = () if asked else ("speed.fast_dropout=false",)
    done = llmkit("pretrain", "masked.toml", "model.config.hidden_dropout_prob=0.1", "trainer.max_steps=2", *words)
    assert done.exit_code == 0, done.stderr
    assert record(workplace / "runs/masked")["speed"]["fast_dropout"] == asked
    assert "fast dropout" not in done.stderr  # nobody has to do anything about it


@pytest.mark.parametrize("asked", [True, False])
def test_memory_is_used_again_unless_the_recipe_says_no(asked, workplace, llmkit, monkeypatch):
    told = []
    monkeypatch.setattr("llmkit.speed.cpu.reuse_memory", lambda: told.append(True) or True)
    words = () if asked else ("speed.reuse_memory=false",)
    done = llmkit("pretrain", "causal.toml", "trainer.max_steps=1", *words)
    assert record(workplace / "runs/causal")["speed"]["reuse_memory"] == bool(told) == asked
    assert "memory used again" not in done.stderr


def test_as_many_threads_as_the_recipe_says(workplace, llmkit):
    before = torch.get_num_threads()
    try:
        assert llmkit("pretrain", "causal.toml", "speed.threads=1", "trainer.max_steps=1").exit_code == 0
        assert torch.get_num_threads() == record(workplace / "runs/causal")["speed"]["threads"] == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("settings", "cuda", "expected"),
    [
        ({}, False, {}),
        ({}, True, {"tf32": True, "use_liger_kernel": True}),
        ({"use_cpu": True}, True, {"use_cpu": True}),
        ({"tf32": False, "use_liger_kernel": False}, True, {"tf32": False, "use_liger_kernel": False}),
    ],
)
def test_a_gpus_kernels_are_switched_on_where_there_is_one(settings, cuda, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(arguments, "is_torch_tf32_available", lambda: True)
    monkeypatch.setattr(arguments, "is_liger_kernel_available", lambda: True)
    assert arguments.choose_kernels(settings) == expected


def test_progress_is_plain_lines_in_a_log(workplace, llmkit):
    done = llmkit("pretrain", "causal.toml")
    steps = [line for line in done.stderr.splitlines() if line.startswith("step ")]
    assert len(steps) == 7  # six of training, one of evaluation
    assert "tokens/s" in steps[0]
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.config.n_layer=-1"], "model.config.n_layer: must be at least 1, not -1"),
        (["model.config.n_layer=0"], "model.config.n_layer: must be at least 1, not 0"),
        (["model.config.n_embd=-32"], "model.config.n_embd: must be at least 1, not -32"),
        (["model.config.resid_pdrop=1.5"], "model.config.resid_pdrop: must be below 1, not 1.5"),
        (["model.config.layer_norm_epsilon=-1"], "model.config.layer_norm_epsilon: must be at least 0, not -1"),
        (["trainer.lr_scheduler_kwargs={ bogus = 3 }"], "bogus"),
        (["trainer.lr_scheduler_type=cosine_with_min_lr"], "min_lr"),
        (["trainer.optim=adamw_8bit"], "[trainer]: "),
        (["trainer.optim=schedule_free_adamw"], "[trainer]: "),
        (['trainer.optim_args="bogus"'], "[trainer]: "),
        (["trainer.report_to=wandb"], "trainer.report_to: the package of `wandb` is not installed"),
        (["trainer.report_to=wandbb"], "did you mean `wandb`?"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_upstream_would_not_check_is_refused_before_anything_is_written(words, said, dry, workplace, llmkit):
    before = sorted(workplace.rglob("*"))
    done = llmkit("pretrain", "causal.toml", *words, *dry)
    assert done.exit_code == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.count("error: ") == 1
    assert sorted(workplace.rglob("*")) == before


def test_batches_for_a_gpu_are_made_by_other_processes(workplace, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("llmkit.speed.cpu.cores", lambda: 16)
    recipe = load("causal.toml", (), None, None, "pretrain")

    def chosen(recipe, begun=None):
        made = arguments.choose_data_workers(recipe, begun)
        return made.trainer.get("dataloader_num_workers"), made.origins.get("trainer.dataloader_num_workers")

    assert chosen(recipe) == (2, "on a GPU")
    assert "dataloader_num_workers = 2  # on a GPU" in arguments.choose_data_workers(recipe, None).to_toml(
        comments=True
    )
    assert chosen(recipe, {"trainer": {"dataloader_num_workers": 2}}) == (2, "as the run was started")
    assert chosen(recipe, {"trainer": {}}) == (0, "as the run was started")  # an earlier version's
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")  # a core each
    assert chosen(recipe) == (0, "on a GPU")
    for words in (["trainer.dataloader_num_workers=5"], ["trainer.use_cpu=true"]):
        given = load("causal.toml", words, None, None, "pretrain")
        assert arguments.choose_data_workers(given, None) is given
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert arguments.choose_data_workers(recipe, None) is recipe
