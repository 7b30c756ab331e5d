"""Every command in the README and on the pages of docs/ parses and validates; the tiny ones run."""

import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from conftest import ROOT, corpus

from llmkit import recipe
from llmkit.cli import app
from llmkit.cli.app import recipe_and_overrides

PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts)]
GENERATED = ROOT / "docs/reference"
TEXTS = {page: page.read_text() for page in PAGES if page.parent != GENERATED}
BLOCKS = [block for text in TEXTS.values() for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]
BLOCKS = [re.sub(r"\\\n +", "", block) for block in BLOCKS]  # a command over two lines
LINES = [line.strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
VERBS = (
    "pretrain|finetune|predict|evaluate|generate|merge|recipes|data|check|report|runs|explain|compare|doctor|completion"
)
INLINE = [match for text in TEXTS.values() for match in re.findall(rf"`(llmkit (?:{VERBS}) [^`.]*[^`. ][^`]*)`", text)]
# Whole commands: not one with a word to fill in (RUN) or left out (...), and no option alone.
INLINE = [command for command in INLINE if not re.search(r"\b[A-Z]{3,}\b|\.\.\.|llmkit \w+ -", command)]
TYPED = [line.partition(" | ")[2] or line for line in LINES if re.match(r"llmkit |echo ", line)]
COMMANDS = list(dict.fromkeys(TYPED + INLINE))
DATA = {path for command in COMMANDS for path in re.findall(r"data\.path=([\w./-]+)", command)}
COPIES = dict(re.findall(r"llmkit recipes copy (\S+) (\S+)", "\n".join(COMMANDS)))
WORKSHOP = ROOT / "docs/tutorials/files/workshop.py"


GO_ON = re.search(r"```toml\n(.*?)```", TEXTS[ROOT / "docs/tutorials/domain.md"], re.DOTALL)[1]


def words(command: str) -> list[str]:
    found = shlex.split(command, comments=True)[1:]
    return found[: next((i for i, word in enumerate(found) if word in (">", ">>")), None)]


def parse(command: str):
    """The innermost command of a line and what Typer makes of its words; a line that does not parse raises."""
    group = typer.main.get_command(app)
    context = group.make_context("llmkit", words(command))
    while hasattr(context.command, "commands") and context._protected_args + context.args:
        name, found, rest = context.command.resolve_command(context, context._protected_args + context.args)
        context = found.make_context(name, rest, parent=context)
    return context


def test_the_pages_have_commands():
    assert len(COMMANDS) > 60
    assert "llmkit generate" in " ".join(COMMANDS)
    blocks = re.findall(r"```bash\n(.*?)```", TEXTS[ROOT / "README.md"], re.DOTALL)
    assert {line.split()[0] for block in blocks for line in block.splitlines()} <= {"llmkit", "make"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses_and_validates(command, tmp_path, monkeypatch):
    for name in DATA:
        if "." in name:
            (tmp_path / name).write_text(corpus(5))
        else:
            (tmp_path / name).mkdir(parents=True)
    for name, copy in COPIES.items():
        shutil.copy(recipe.bundled()[name], tmp_path / copy)
    shutil.copy(ROOT / "recipes/tiny/stories.txt", tmp_path)
    (tmp_path / "go-on.toml").write_text(GO_ON)
    (tmp_path / "notes.txt").write_text(corpus(5))
    monkeypatch.chdir(tmp_path)
    context = parse(command)
    if context.command.name in ("pretrain", "finetune"):
        task = context.params["task"]
        path, overrides = recipe_and_overrides(context.params["recipe"], context.params["overrides"], task)
        recipe.load(path, overrides, context.params["output_dir"], task, verb=context.command.name)
    if context.command.name == "evaluate":
        made_by = {"runs/gpt2": "tiny/gpt2", "runs/bert": "tiny/bert"}.get(context.params["model"], "glue")
        words_given = [context.params["recipe"], *(context.params["overrides"] or [])]
        overrides, task = [word for word in words_given if word], context.params["task"]
        recipe.load(None if task else made_by, overrides, task=task)
    if context.command.name == "generate":
        words_of = [word for word in context.params["options"] or [] if not word.startswith("system_prompt=")]
        recipe.generation_options(words_of)
    if context.command.name == "show":
        recipe.find(context.params["name"])


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", "\n".join(LINES), re.MULTILINE))
def test_a_make_target_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def run_of(command: str) -> tuple[str, ...]:
    """The words of a training, but for those that leave its two steps as they are: where the recipe lies, trackers."""
    argv = [word.removeprefix("recipes/").removesuffix(".toml") for word in words(command)]
    return tuple(word for word in argv if not word.startswith("trainer.report_to="))


def test_the_tiny_commands_run(tmp_path, llmkit, monkeypatch):
    """Those that need nothing but what ships with llmkit, two steps each; of the tutorials too."""
    monkeypatch.chdir(tmp_path)
    made = subprocess.run([sys.executable, WORKSHOP, "stories"], check=True, capture_output=True)
    (tmp_path / "stories.txt").write_bytes(made.stdout)
    trains = ("pretrain", "finetune")
    tiny = [c for c in COMMANDS if "tiny/" in c and words(c)[0] in trains and "--processes" not in c]
    tiny = [c for c in tiny if "--max-time" not in c and "HuggingFaceTB" not in c]
    assert {words(c)[0] for c in tiny} == set(trains)
    unique = {run_of(command): words(command) for command in tiny}
    read = set(re.findall(r"(?:--model |model\.name=)runs/([\w-]+)", "\n".join(COMMANDS)))
    # tests/test_recipes.py trains each recipe as it is: here those that a later command reads.
    short = ("trainer.max_steps=2", "trainer.save_strategy=no", "data.max_eval_samples=2", "trainer.report_to=none")
    short = (*short, "trainer.learning_rate=1e-6")  # two steps at a recipe's own teach a model to end at once
    for argv in [argv for run, argv in unique.items() if len(run) > 2 or run[1].removeprefix("tiny/") in read]:
        done = llmkit(*argv, *short)
        assert done.exit_code == 0, done.stderr
    (tmp_path / "prompts.txt").write_text("One day\nLong ago\n")
    (tmp_path / "questions.jsonl").write_text('{"prompt": "Who is Pip?"}\n')
    for command in {tuple(words(command)): command for command in COMMANDS}.values():
        model = re.search(r"--model (runs/\S+)", command)
        if (
            words(command)[0] == "generate"
            and "HuggingFaceTB" not in command
            and (not model or Path(model[1]).is_dir())
        ):
            stdin = "Long ago" if " - " in f"{command} " else None
            done = llmkit(*words(command), "max_new_tokens=5", stdin=stdin)
            assert done.exit_code == 0, (command, done.stderr)
            assert done.stdout.strip() or "--output" in command
    (tmp_path / "stories.txt").unlink()  # a copied recipe brings a text of that name
    for command in COMMANDS:
        if words(command)[0] == "recipes" and "new" not in words(command):  # which needs a model of the Hub
            assert llmkit(*words(command)).exit_code == 0


def test_the_error_that_a_page_shows_is_the_one_that_comes(tmp_path, llmkit, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/concepts/recipes.md").read_text()
    shown = re.search(r"```text\n(error: .*?)```", page, re.DOTALL)[1]
    lines = [""] * 20
    lines[0], lines[2], lines[3] = 'task = "causal-lm"', "[model]", 'name = "openai-community/gpt2"'
    lines[6], lines[7], lines[8] = "[data]", 'path = "org/name"', "blok_size = 4"
    lines[12], lines[13] = "[trainer]", "warmup_ratio = 0.03"
    (tmp_path / "mine.toml").write_text("\n".join(lines))
    installed = version("transformers").rpartition(".")[0]
    assert llmkit("pretrain", "mine.toml").stderr.replace(installed, "5.23") == shown


def test_the_tree_names_every_room():
    tree = re.search(r"```text\nllmkit/\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), re.DOTALL)[1]
    rooms = {folder.name for folder in (ROOT / "llmkit").iterdir() if (folder / "__init__.py").is_file()}
    assert set(re.findall(r"^  (\w+)/", tree, re.MULTILINE)) == rooms
    assert len(tree.splitlines()) <= 20
    for file in (ROOT / "llmkit").glob("*.py"):
        assert file.name.startswith("__") or file.stem in tree, file.name


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 180
    assert len(text.split()) < 2_000


@pytest.mark.parametrize("page", [page for page in TEXTS if page.parent != ROOT], ids=lambda page: page.stem)
def test_a_page_is_short_enough_to_read(page):
    assert len(TEXTS[page].split()) <= 1_500 or page.name == "reliability.md"  # it has a row for each fault
