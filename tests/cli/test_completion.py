"""What a shell completes: words for every parameter, in each shell's own way, at once."""

import json
import os
import resource
import shutil
import subprocess
import sys

import pytest
import typer
from conftest import ROOT

from llmkit.cli import app, completion
from llmkit.recipe import bundled
from llmkit.recipe.keys import known_keys

# What nobody can guess: numbers, times, names and texts of one's own.
FREE = {
    "--allow-host",
    "--allow-origin",
    "--host",
    "--max-body",
    "--max-tokens",
    "--max-waiting",
    "--port",
    "--halving",
    "--memory",
    "--name",
    "--price",
    "--trials",
    "--workers",
    "--shard-size",
    "--processes",
    "--max-time",
    "--seeds",
    "--seed",
    "texts",
    "repo_id",
    "--license",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("small", "large"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / f"runs/{name}/run.json").write_text('{"task": "text-classification"}')
    (tmp_path / "runs/notes").mkdir()
    (tmp_path / "my rows.csv").write_text("text,label\n")
    (tmp_path / "mine.toml").write_text('task = "chat"\n')
    (tmp_path / ".hidden").write_text("")
    return tmp_path


def complete(line: str, breaks: str = "", shell: str = "bash") -> list[str]:
    words = [line] if shell == "bash" else line.split(" ")[1:]
    return completion.Completion(shell, words, typer.main.get_command(app), breaks).complete().splitlines()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("llmkit fi", ["finetune"]),
        ("llmkit recipes s", ["show", "schema"]),
        ("llmkit finetune --res", ["--resume"]),
        ("llmkit finetune --task sst", ["sst2"]),
        ("llmkit finetune --task=sst", ["--task=sst2"]),
        ("llmkit pretrain --task ", ["causal-lm", "masked-lm"]),
        ("llmkit finetune tiny/e", ["tiny/ending"]),
        ("llmkit pretrain tiny/e", ["tiny/electra"]),
        ("llmkit recipes show tiny/e", ["tiny/electra", "tiny/ending"]),
        ("llmkit finetune m", ["multi-task", "mine.toml"]),
        ("llmkit check s", ["small"]),
        ("llmkit compare small runs/l", ["runs/large/"]),
        ("llmkit generate --model l", ["large"]),
        ("llmkit evaluate small --output m", ["mine.toml", "my\\ rows.csv"]),
        ("llmkit finetune glue trai", ["trainer."]),
        ("llmkit finetune glue trainer.lr_s", ["trainer.lr_scheduler_type=", "trainer.lr_scheduler_kwargs="]),
        ("llmkit finetune glue trainer.optim=adamw_torch_f", ["trainer.optim=adamw_torch_fused"]),
        ("llmkit finetune glue trainer.bf16=", ["trainer.bf16=true", "trainer.bf16=false"]),
        ("llmkit finetune glue data.path=my", ["data.path=my\\ rows.csv"]),
        ("llmkit finetune glue model.name=sm", ["model.name=small"]),
        ("llmkit pretrain gpt2-small data.sources.web.pa", ["data.sources.web.path="]),
        ("llmkit finetune glue data.label_c", ["data.label_column="]),
        ("llmkit finetune mine.toml data.label_c", []),  # it is for chat
        ("llmkit finetune --task chat data.label_c", []),
        ("llmkit evaluate small data.label_c", ["data.label_column="]),  # and no recipe
        ("llmkit finetune glue --allow-change data.global", ["data.global_batch_size"]),
        ("llmkit data rows.csv trai", []),
        ("llmkit explain guard.max_sk", ["guard.max_skipped_steps"]),
        ("llmkit generate --model small max_new", ["max_new_tokens="]),
        ("llmkit runs --sort va", ["value"]),
        ("llmkit runs --filter trainer.optim=adamw_torch_f", ["trainer.optim=adamw_torch_fused"]),
        ("llmkit runs --format j", ["json"]),
        ("llmkit push small ada/small --include pr", ["predictions"]),
        ("llmkit completion ", ["bash", "zsh", "fish"]),
        ("llmkit nothing ", []),
    ],
)
def test_words_that_fit_are_found(place, line, words):
    assert complete(line) == words


def test_every_parameter_is_completed_or_free():
    def commands(group):
        for command in group.commands.values():
            yield from commands(command) if hasattr(command, "commands") else [command]

    for command in commands(typer.main.get_command(app)):
        for parameter in command.params:
            chosen = parameter.type_descriptor.is_choice or getattr(parameter, "is_flag", False)
            name = parameter.opts[0]
            assert chosen or name in FREE or parameter._custom_shell_complete is not None, (command.name, name)


def test_every_key_that_a_recipe_accepts_is_offered():
    offered = {key[0] for key in completion.known()["keys"]}
    for task in ("text-classification", "causal-lm"):
        assert {key for key in known_keys(task) if key.startswith(("data.", "model.", "guard."))} <= offered
    assert set(completion.known()["recipes"]) == set(bundled())


def test_bash_replaces_what_stands_behind_its_last_word_break(place):
    assert complete("llmkit finetune glue data.path=my", "\n\"'><=;|&(:") == ["my\\ rows.csv"]
    assert complete("llmkit finetune --task=sst", "=") == ["sst2"]
    assert complete("llmkit finetune glue 'data.path=my", "=") == ["data.path=my rows.csv"]


def test_other_shells_are_told_what_words_mean(place):
    assert complete("llmkit explain data.max_l", shell="zsh")[0].startswith("data.max_length\tThe number of")
    assert complete("llmkit finetune glue trainer.optim=adamw_torch_f", shell="fish") == [
        "trainer.optim=adamw_torch_fused"
    ]


SHELLS = [shell for shell in ("bash", "zsh", "fish") if shutil.which(shell)]
# What each shell itself makes of a line, with its own script.
BASH = """
source "$1"; COMP_LINE="$2" COMP_POINT=${#2}; _llmkit_completion llmkit 2>/dev/null; printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """
compdef() { :; }; source "$1"
_describe() { shift 2; print -rl -- ${${(P)1}%%:*}; }
words=(${(z)2}) CURRENT=$#words; _llmkit
"""
FISH = "source $argv[1]; complete -C $argv[2]"


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_runs_its_script(shell, place):
    bin = place / "bin"
    bin.mkdir()
    (bin / "llmkit").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llmkit "$@"\n')
    (bin / "llmkit").chmod(0o755)
    script = place / "script"
    script.write_text(completion.SCRIPTS[shell])
    run = {"bash": ["-c", BASH, "_"], "zsh": ["-fc", ZSH, "_"], "fish": ["--no-config", "-c", FISH]}[shell]
    path = {"PATH": f"{bin}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for line, expected in (
        ("llmkit finetune glue trainer.optim=adamw_torch_f", "trainer.optim=adamw_torch_fused"),
        ("llmkit check sm", "small"),
        ("llmkit finetune --task sst", "sst2"),
    ):
        done = subprocess.run([shell, *run, script, line], capture_output=True, text=True, env={**os.environ, **path})
        found = [word.partition("\t")[0] for word in done.stdout.splitlines()]
        assert found == [expected] or (shell == "bash" and found == [expected.rpartition("=")[2]]), done


def test_the_command_prints_the_script_of_a_shell(llmkit):
    for shell, script in completion.SCRIPTS.items():
        assert llmkit("completion", shell).stdout == script
    assert llmkit("completion", "tcsh").exit_code == 2


def test_words_are_collected_anew_when_something_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    file = tmp_path / "llmkit/completion.json"

    def known():
        completion.known.cache_clear()
        return completion.known()

    first = known()
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({**kept, "recipes": {"kept": ["chat", ""]}}))
    assert list(known()["recipes"]) == ["kept"]
    for content in (json.dumps({**kept, "stamp": "another", "recipes": {}}), "{", "[]"):
        file.write_text(content)
        assert known() == first
    monkeypatch.setenv("HF_HOME", str(file / "no folder"))
    assert known()["recipes"] == first["recipes"]
    completion.known.cache_clear()


def answered(*words: str) -> str:
    """What `llmkit` prints for a shell, in a process of its own; the words are known from an earlier time."""
    completion.known()
    code = (
        "import sys; from llmkit.__main__ import main; main()\n"
        "assert not {'pydantic', 'torch', 'transformers', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    environment = {**os.environ, completion.ASKED: "zsh"}
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_heavy_is_imported():
    assert answered("finetune", "glue", "trainer.lr_scheduler_t").startswith("trainer.lr_scheduler_type=\t")
    assert answered("explain", "data.max_l").startswith("data.max_length\t")


@pytest.mark.alone
def test_it_answers_in_a_fifth_of_a_second():
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        answered("finetune", "glue", "trainer.lr_scheduler_t")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.2  # of a processor: other processes on the machine only ever add


def test_a_line_that_makes_no_sense_is_answered_with_nothing(monkeypatch, capsys):
    for line in ("llmkit finetune --task", "llmkit 'open", "x", ""):
        completion.answer(app, "bash", [line])
    monkeypatch.setattr(completion, "known", lambda: 1 / 0)
    completion.answer(app, "bash", ["llmkit explain da"])
    assert "Error" not in capsys.readouterr().err
