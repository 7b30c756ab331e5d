"""`llmkit explain`: every key has a type and a meaning, and what it says is what a recipe accepts."""

import subprocess
import sys
import time

import pytest

from llmkit.errors import UserError
from llmkit.explain import explain
from llmkit.recipe import bundled, catalogue, schema, upstream
from llmkit.recipe.keys import known_keys
from llmkit.terminal import TERMINAL


def test_a_key_is_explained_with_type_default_meaning_and_example(monkeypatch):
    monkeypatch.setenv(TERMINAL, "80")
    monkeypatch.setenv("NO_COLOR", "1")
    lines = "\n".join(explain("trainer.lr_scheduler_type")).split("\n")
    text = " ".join(" ".join(lines).split())
    assert lines[0] == "trainer.lr_scheduler_type"
    for part in (
        'type one of "linear", "cosine"',
        'default "linear"',
        "from TrainingArguments of transformers",
        "example",
    ):
        assert part in text
    assert max(map(len, lines)) <= 80


def test_llmkits_own_defaults_are_told_and_not_upstreams():
    assert "  default  10" in explain("trainer.logging_steps")
    assert "  default  none: it is required" in explain("task")


def test_a_key_that_differs_from_task_to_task_is_explained_for_each():
    text = "\n".join(explain("data.max_length"))
    assert text.count("data.max_length\n") == 2
    assert "tasks    chat" in text


def test_a_table_lists_its_keys_and_no_name_lists_the_tables(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert [line.split()[0] for line in explain("guard")[2:-2] if not line.startswith(" ")] == list(
        schema.Guard.model_fields
    )
    listed = [line.split()[0].strip("[]") for line in explain(None)[:-2] if line.startswith("[")]
    assert set(listed) == {*schema.UPSTREAM_TABLES, *schema.own_tables("causal-lm"), "tasks"}
    assert explain("[guard]") == explain("guard")


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("trainer.lerning_rate", "there is no key `trainer.lerning_rate`", "did you mean `trainer.learning_rate`?"),
        ("learning_rate", "there is no key `learning_rate`", "did you mean `trainer.learning_rate`?"),
        ("trainer.output_dir", "`trainer.output_dir` cannot be set: set by the run itself", "llmkit explain trainer"),
        ("xyzzy", "there is no key `xyzzy`", "list the tables: llmkit explain"),
    ],
)
def test_an_unknown_key_is_answered(name, message, hint):
    with pytest.raises(UserError) as caught:
        explain(name)
    assert caught.value.message.startswith(message)
    assert hint in caught.value.hint


def test_every_key_that_a_recipe_accepts_is_listed_and_no_other():
    listed = {key.name for key in catalogue.recipe_keys()}
    for task in schema.TASKS:
        accepted = set(known_keys(task))
        refused = {
            name
            for name in accepted
            for table, class_name in schema.UPSTREAM_TABLES.items()
            if name.startswith(f"{table}.")
            and (
                upstream.refusal(class_name, name.removeprefix(f"{table}."), "x")
                or upstream.fields(class_name)[name.removeprefix(f"{table}.")].deprecated
            )
        }
        assert accepted - refused <= listed, task
    assert {key.name for key in catalogue.recipe_keys() if not key.meaning and not key.upstream} == set()


def test_examples_are_lines_of_recipes_that_load():
    for key in catalogue.recipe_keys():
        if example := catalogue.example(key.name):
            line, recipe = example
            assert line in bundled()[recipe].read_text()


def test_it_answers_at_once_and_without_torch():
    code = (
        "import sys; from llmkit.explain import explain; explain('trainer.lr_scheduler_type');"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.perf_counter() - began < 5  # half a second on an idle machine
