"""The JSON Schema of recipes: what llmkit accepts is valid, and what it refuses by type or name is not."""

import json
import subprocess
import sys
import tomllib

import jsonschema
import pytest

from llmkit.recipe import bundled
from llmkit.recipe.json_schema import json_schema

VALIDATOR = jsonschema.Draft7Validator(json_schema())
GOOD = tomllib.loads(bundled()["gpt2-small"].read_text())


def test_the_schema_is_one():
    jsonschema.Draft7Validator.check_schema(json_schema())
    done = subprocess.run(
        [sys.executable, "-m", "llmkit", "recipes", "schema"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == json_schema()


@pytest.mark.parametrize("name", bundled())
def test_every_bundled_recipe_is_valid(name):
    errors = VALIDATOR.iter_errors(tomllib.loads(bundled()[name].read_text()))
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("task", "causal-ml"),
        ("tasks", 3),
        ("trainer.learning_rte", 1e-3),
        ("trainer.learning_rate", "fast"),
        ("trainer.lr_scheduler_type", "cosin"),
        ("trainer.max_steps", 1.5),
        ("model.init", "scrtch"),
        ("model.nme", "gpt2"),
        ("data.path", 7),
        ("data.clean.ovrlap", True),
        ("data.clean.overlap", "yes"),
        ("data.sources", {"a": {"pth": "x"}}),
        ("guard.max_skipped_steps", "five"),
        ("nonsense", {}),
        ("trainer", [{"learning_rate": 1e-3}]),
    ],
)
def test_a_mistake_is_not_valid(place, value):
    recipe = json.loads(json.dumps(GOOD))
    *tables, key = place.split(".")
    inner = recipe
    for table in tables:
        inner = inner.setdefault(table, {})
    inner[key] = value
    assert not VALIDATOR.is_valid(recipe)


def test_tables_under_names_of_ones_own_are_known():
    recipe = {"task": "multi-task", "tasks": {"a": {"recipe": "sst2", "data": {"max_length": 64}}}}
    assert VALIDATOR.is_valid(recipe)
    recipe["tasks"]["a"]["wieght"] = 1.0
    assert not VALIDATOR.is_valid(recipe)
    assert VALIDATOR.is_valid({"task": "causal-lm", "data": {"sources": {"mine": {"path": "a.txt"}}}})


def test_every_key_has_a_description():
    def bare(schema, path=""):
        for name, inner in schema.get("properties", {}).items():
            if not inner.get("description") and not path.startswith((".trainer", ".lora", ".generation")):
                yield f"{path}.{name}"
            yield from bare(inner, f"{path}.{name}")

    assert list(bare(json_schema())) == []
