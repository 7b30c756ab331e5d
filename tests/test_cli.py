"""The command line: its options are frozen, it answers at once, and nothing heavy is imported for it."""

import re
import statistics
import subprocess
import sys
import time

import pytest
import typer

from llmkit import __version__
from llmkit.cli import app
from llmkit.recipe import run_options

TRAINING = (
    *(
        "recipe",
        "overrides",
        "--task",
        "--name",
        "--output-dir",
        "--processes",
        "--accelerate-config",
        "--launched",
        "--max-time",
    ),
    *("--sweep", "--trials", "--sampler", "--halving", "--seeds"),
)
# A new option needs a user who cannot do without it, and a line in CHANGELOG.md.
OPTIONS = {
    "pretrain": [
        *TRAINING,
        *("--resume", "--allow-change", "--offline", "--dry-run"),
    ],
    "prepare": ["recipe", "overrides", "--task", "--workers", "--engine", "--shard-size", "--offline"],
    "finetune": [
        *TRAINING,
        *("--resume", "--allow-change", "--offline", "--dry-run"),
    ],
    "generate": [
        "prompt",
        "options",
        "--model",
        "--chat",
        "--input",
        "--output",
        "--overwrite",
        "--quantize",
        "--seed",
        "--offline",
    ],
    "predict": ["model", "texts", "--input", "--output", "--overwrite", "--quantize", "--precision", "--offline"],
    "evaluate": [
        "model",
        "recipe",
        "overrides",
        "--task",
        "--output",
        "--overwrite",
        "--quantize",
        "--precision",
        "--offline",
        "--json",
    ],
    "merge": ["run", "--output", "--precision", "--offline"],
    "export": ["model", "--output", "--format", "--precision", "--quantize", "--offline"],
    "serve": [
        *("model", "--host", "--port", "--key-file", "--allow-host", "--allow-origin", "--quantize"),
        *("--max-tokens", "--max-waiting", "--max-body", "--offline"),
    ],
    "push": ["run", "repo_id", "--license", "--public", "--include", "--dry-run"],
    "data": ["path", "overrides", "--task"],
    "plan": [
        *("recipe", "overrides", "--task", "--processes", "--memory", "--measure", "--price", "--json", "--offline"),
    ],
    "check": ["run", "--json"],
    "compare": ["names", "--format", "--html", "--json"],
    "explain": ["key"],
    "runs": ["folder", "--sort", "--filter", "--format", "--json"],
    "report": ["run"],
    "recipes": [],
    "recipes list": [],
    "recipes show": ["name"],
    "recipes copy": ["name", "to"],
    "recipes new": ["path", "overrides", "--task", "--output", "--offline"],
    "recipes schema": [],
    "doctor": ["--measure", "--offline", "--json"],
    "completion": ["shell"],
}


def commands(group, prefix=""):
    for name, command in group.commands.items():
        yield prefix + name, command
        if hasattr(command, "commands"):
            yield from commands(command, prefix + name + " ")


def test_the_option_list_is_frozen():
    found = {
        name: [p.opts[0] if p.param_type_name == "option" else p.name for p in command.params]
        for name, command in commands(typer.main.get_command(app))
    }
    assert found == OPTIONS


def seconds(*code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *code], check=True, capture_output=True)
    return time.perf_counter() - start


@pytest.mark.alone
def test_help_answers_within_twice_the_time_of_importing_typer():
    pairs = [(seconds("-m", "llmkit", "--help"), seconds("-c", "import typer")) for _ in range(7)]
    assert statistics.median(ours / typer_alone for ours, typer_alone in pairs) < 2


@pytest.mark.parametrize(
    "words",
    [
        *(["--help"], ["pretrain", "--help"], ["recipes"], ["pretrain", "x.toml", "a.b=1"]),
        *(["finetune", "--task", "sst3"], ["finetune", "glue", "data.nam=sst2"], ["predict", "x", "--input", "no.csv"]),
        *(["finetune", "a.csv"], ["finetune", "."], ["finetune", "glue", "--lr", "3"], ["pretrain", "a.csv", "lr=3"]),
        *(["predict", "runs/x", "text"], ["evaluate", "runs/x"], ["generate", "--chat", "--input", "no.txt"]),
    ],
)
def test_nothing_heavy_is_imported(words, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,b\n")
    code = (
        "import sys; from llmkit.cli import app\n"
        f"try: app({words!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pandas', 'peft', 'accelerate'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.alone
@pytest.mark.parametrize("mistake", ["data.blok_size=3", "trainer.lerning_rate=1", "trainer.lr=1e-4", "--lr=1e-4"])
def test_a_misspelt_key_is_answered_in_half_a_second(mistake, workplace):
    times = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "llmkit", "pretrain", "causal.toml", mistake], capture_output=True, text=True
        )
        times.append(time.perf_counter() - start)
        assert done.returncode == 2
        assert "did you mean" in done.stderr or "write `trainer.learning_rate=1e-4`" in done.stderr
        assert done.stdout == ""
    assert min(times) < 0.5  # the least of five: other processes on the machine only ever add
    assert sorted(p.name for p in workplace.iterdir()) == ["causal.toml", "corpus.txt", "masked.toml"]


def test_version(llmkit):
    assert llmkit("--version").stdout == f"llmkit {__version__}\n"


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert version("llmkit") == __version__


def test_no_words_are_answered_with_help(llmkit):
    done = llmkit()
    assert "pretrain" in done.output
    assert "generate" in done.output


def test_an_unknown_option_is_the_users_mistake(llmkit):
    done = llmkit("pretrain", "causal.toml", "--outputdir", "x")
    assert done.exit_code == 2


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["pretain"], "llmkit has no command `pretain`", "did you mean `llmkit pretrain`?"),
        (["recipes", "lst"], "llmkit recipes has no command `lst`", "did you mean `llmkit recipes list`?"),
        (["predict"], "llmkit predict: MODEL is missing", "llmkit predict [OPTIONS] MODEL [TEXT]...; for more:"),
        (["finetune", "--seeds", "1"], "llmkit finetune: --seeds must be greater than or equal to 2", "[OPTIONS]"),
        (
            ["finetune", "--seeds"],
            "llmkit finetune: option '--seeds' requires an argument",
            "for more: llmkit finetune",
        ),
        (["generate", "--quantize", "int3"], "--quantize 'int3' is not one of 'int8', 'int4'", "llmkit generate -h"),
        (["check", "a", "b"], "llmkit check: got unexpected extra argument(s) (b)", "llmkit check [OPTIONS] RUN;"),
        (["finetune", "--lr", "3"], "llmkit finetune has no such option", "llmkit finetune trainer.learning_rate=3"),
        (["recipes", "new", "a.csv", "--out", "b"], "llmkit recipes new has no such option", "new a.csv --output b"),
    ],
)
def test_every_mistake_is_told_in_one_style(words, error, hint, llmkit):
    done = llmkit(*words)
    assert (done.exit_code, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert lines[-1].startswith("hint: ")
    assert hint in lines[-1]
    assert not [line for line in lines if line.startswith(("Usage", "Try", "Error"))]


def test_help_has_groups_and_examples_in_80_columns(llmkit):
    assert {"Train:", "Use:", "Look:", "Set up:"} <= set(llmkit("-h").stdout.splitlines())
    for name, _ in commands(typer.main.get_command(app)):
        shown = llmkit(*name.split(), "-h").stdout
        assert max(map(len, shown.splitlines())) <= 80, name
        assert not re.search(r"[a-z]\.\.\.", shown), name  # a sentence that was cut off
        if "recipes" not in name:
            examples = shown.partition("\nExamples:\n")[2].splitlines()
            assert examples
            assert all(line.startswith(f"  llmkit {name} ") for line in examples)
    assert "Resuming a run:\n  --resume" in llmkit("pretrain", "-h").stdout


def test_recipes_are_grouped_and_cut_at_words(llmkit):
    from llmkit.recipe import bundled

    lines = llmkit("recipes").stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "Pretrain:",
        "Fine-tune:",
        "Try, without a network:",
    ]
    assert max(map(len, lines)) <= 80
    listed = [line.split() for line in lines if line.startswith(" ")]
    assert {name for name, *_ in listed} == set(bundled())
    for name, *words in listed:
        text = " ".join(bundled()[name].read_text().replace("#", " ").split())
        shown = " ".join(words).removesuffix(" ...")
        assert text.startswith(shown)
        assert text[len(shown)] == " "  # a whole word


def test_a_run_is_named_by_the_command_line_and_found_by_its_name(llmkit, workplace):
    """Two runs that differ by an override: without --name the second would be `causal-2`, whatever it is."""
    slow = ("pretrain", "causal.toml", "trainer.learning_rate=1e-3", "--name", "slow")
    assert llmkit("pretrain", "causal.toml", "trainer.max_steps=1").exit_code == 0
    assert llmkit(*slow, "trainer.max_steps=1").exit_code == 0
    assert sorted(path.name for path in (workplace / "runs").iterdir()) == ["causal", "slow"]
    assert "`runs/slow` is finished" in llmkit(*slow, "trainer.max_steps=1", "--resume").stderr
    assert "the run `runs/slow`" in llmkit("check", "slow").stderr
    done = llmkit("generate", "the", "--model", "slow", "max_new_tokens=2")
    assert done.exit_code == 0, done.stderr
    for words, said in (
        (["--name", "a/b"], "is not a valid run name"),
        (["--name", "a", "--output-dir", "b"], "cannot be combined"),
    ):
        done = llmkit("pretrain", "causal.toml", *words)
        assert done.exit_code == 2
        assert said in done.stderr


def test_a_task_stands_for_a_recipe_to_pretrain_with_too(llmkit, workplace):
    words = ["trainer.max_steps=1", "trainer.per_device_train_batch_size=1", "data.block_size=16", "--dry-run"]
    small = [
        "model.name=",
        "model.config={model_type='gpt2', n_layer=1, n_head=1, n_embd=8}",
        "tokenizer={type='byte-bpe', vocab_size=300}",
    ]
    done = llmkit("pretrain", "--task", "causal-lm", "data.path=corpus.txt", *small, *words)
    assert done.exit_code == 0, done.stderr
    assert 'task = "causal-lm"' in done.stdout
    wrong = llmkit("pretrain", "--task", "sst2")
    assert wrong.exit_code == 2
    assert "hint: llmkit finetune --task sst2" in wrong.stderr
    neither = llmkit("pretrain")
    assert neither.exit_code == 2
    assert "no recipe is given" in neither.stderr


def test_python_m_llmkit_is_the_command(tmp_path):
    done = subprocess.run([sys.executable, "-m", "llmkit", "recipes", "list"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "tiny/gpt2" in done.stdout


def test_recipes_are_listed_shown_and_copied(llmkit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = llmkit("recipes").stdout
    assert listed == llmkit("recipes", "list").stdout
    assert {line.split()[0] for line in listed.splitlines()} >= {"gpt2-small", "bert-base", "shakespeare-char"}
    shown = llmkit("recipes", "show", "tiny/gpt2").stdout
    assert llmkit("recipes", "copy", "tiny/gpt2", "mine.toml").stdout == "mine.toml\n"
    assert (tmp_path / "mine.toml").read_text() == shown
    assert (tmp_path / "stories.txt").exists()  # what the recipe learns from comes along
    assert llmkit("pretrain", "mine.toml", "--dry-run").exit_code == 0
    again = llmkit("recipes", "copy", "tiny/gpt2", "mine.toml")
    assert again.exit_code == 2
    assert "already exists" in again.stderr


def test_an_unknown_recipe_names_the_nearest(llmkit):
    done = llmkit("recipes", "show", "gpt2-smal")
    assert done.exit_code == 2
    assert "gpt2-small" in done.stderr


def test_dry_run_prints_toml_on_stdout_and_arithmetic_on_stderr(llmkit, workplace):
    done = llmkit("pretrain", "causal.toml", "trainer.max_steps=40", "--processes", "2", "--dry-run")
    assert done.exit_code == 0
    (workplace / "again.toml").write_text(done.stdout)
    assert llmkit("pretrain", "again.toml", "--dry-run", "--processes", "2").stdout.splitlines()[1:] != []
    assert "max_steps = 40  # command line" in done.stdout
    assert "8 blocks x 1 accumulated x 2 processes x 16 = 256" in done.stderr
    assert "40, 10,240 tokens in all" in done.stderr
    assert not (workplace / "runs").exists()


@pytest.mark.parametrize("dry_run", [["--dry-run"], []])
def test_a_missing_tensorboard_names_what_to_install(dry_run, llmkit, workplace, monkeypatch):
    from llmkit.training import arguments

    monkeypatch.setattr(arguments, "find_spec", lambda name: None)
    done = llmkit("pretrain", "causal.toml", "trainer.report_to=tensorboard", *dry_run)
    assert done.exit_code == 2
    assert "TensorBoard is not installed\nhint: pip install 'llmkit[tensorboard]'" in done.stderr


def test_half_precision_that_a_cpu_is_slow_in_is_answered_in_the_dry_run(llmkit, workplace):
    done = llmkit("pretrain", "causal.toml", "trainer.fp16=true", "trainer.use_cpu=true", "--dry-run")
    assert done.exit_code == 0
    said = " ".join(done.stderr.split())
    assert "precision fp32 (trainer.fp16 is set, but this hardware is not fast at it)" in said


def test_steps_without_effect_are_said(llmkit, workplace):
    said = "trainer.save_steps has no effect: trainer.save_strategy is epoch"
    for words, told in (
        (["trainer.save_steps=5", "trainer.save_strategy=epoch"], True),
        (["trainer.save_steps=5"], False),
        (["trainer.save_strategy=epoch"], False),
    ):
        assert (said in " ".join(llmkit("pretrain", "causal.toml", *words, "--dry-run").stderr.split())) == told
    done = llmkit("pretrain", "causal.toml", "trainer.eval_steps=5", "--dry-run")
    assert "trainer.eval_steps has no effect: trainer.eval_strategy is no" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2h", 7200), ("1h0m5s", 3605), ("1m30s", 90), ("36h", 129_600)],
)
def test_a_length_of_time_is_read_in_hours_minutes_and_seconds(written, seconds):
    assert run_options.seconds(written) == seconds


@pytest.mark.parametrize("written", ["", "0s", "30", "1.5h", "30m1h", "-5m", "1 h", "5d", "m"])
def test_what_is_no_length_of_time_is_refused_before_anything_is_read(written, llmkit, workplace):
    for verb in ("pretrain", "finetune"):
        done = llmkit(verb, "nowhere.toml", f"--max-time={written}")
        assert done.exit_code == 2
        assert f"--max-time: `{written}` is not a duration" in done.stderr
        assert "90s, 30m, 1h30m" in done.stderr


def test_dry_run_shows_what_the_clock_changes(llmkit, workplace):
    done = llmkit("pretrain", "causal.toml", "--max-time", "1h30m", "--dry-run")
    assert done.exit_code == 0
    assert "--max-time 1h30m: training stops this long after its first step starts" in " ".join(done.stderr.split())
    assert "trainer.max_steps is ignored" in " ".join(done.stderr.split())
    assert "max-time" not in done.stdout
    by_epochs = llmkit("pretrain", "causal.toml", "trainer.max_steps=", "--max-time", "90s", "--dry-run")
    assert "trainer.num_train_epochs is ignored" in " ".join(by_epochs.stderr.split())
