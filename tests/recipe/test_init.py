"""Recipes are found by path or by name, and one that is no TOML is refused."""

import shutil

import pytest
from recipe_texts import MASKED, PLAIN

from llmkit import recipe
from llmkit.errors import UserError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'task = "causal-lm"\n[model\n',
            " line 2, column 7: not TOML: Expected ']' at the end of a table declaration",
        ),
        (b"a = 1\na = 2\n", " line 2, column 6: not TOML: Cannot overwrite a value"),
        (b"a = [1,", " line 1, the end: not TOML: Invalid value"),
        (b'a = 1\nb = "\xe9"\n', " line 2: not UTF-8 (invalid continuation byte)"),
    ],
)
def test_a_file_that_is_no_toml(tmp_path, content, message):
    file = tmp_path / "r.toml"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        recipe.load(str(file))
    assert caught.value.message.removeprefix(f"`{file}`") == message


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package that carries recipes, as a wheel does, and an empty working directory."""
    package, here = tmp_path / "site" / "llmkit", tmp_path / "here"
    (package / "recipes" / "tiny").mkdir(parents=True)
    here.mkdir()
    for name in ("gpt2-small", "tiny/gpt2"):
        (package / "recipes" / f"{name}.toml").write_text(PLAIN)
    monkeypatch.setattr(recipe, "_PACKAGE", package)
    monkeypatch.chdir(here)
    return package


def test_bundled_recipes_by_name(installed):
    assert list(recipe.bundled()) == ["gpt2-small", "tiny/gpt2"]
    for name in ("tiny/gpt2", "tiny/gpt2.toml", "recipes/tiny/gpt2.toml"):
        assert recipe.load(name).source == installed / "recipes" / "tiny" / "gpt2.toml"


def test_in_a_checkout_the_recipes_stand_beside_the_package(installed):
    shutil.move(installed / "recipes", installed.parent / "recipes")
    assert recipe.load("gpt2-small").source == installed.parent / "recipes" / "gpt2-small.toml"


def test_a_file_beats_a_bundled_recipe(installed, tmp_path):
    (tmp_path / "here" / "gpt2-small").write_text(MASKED)
    assert recipe.load("gpt2-small").task == "masked-lm"


@pytest.mark.parametrize(
    ("name", "near"), [("gpt2-smal", "gpt2-small"), ("recipes/tiny/gpt3.toml", "tiny/gpt2"), ("gpt2", "tiny/gpt2")]
)
def test_a_name_that_is_neither(installed, name, near):
    with pytest.raises(UserError) as caught:
        recipe.load(name)
    assert caught.value.message == f"`{name}` is neither a file nor a recipe that comes with llmkit"
    assert caught.value.hint.startswith(f"did you mean `{near}`? ")


def test_a_folder_is_no_recipe(installed):
    with pytest.raises(UserError, match="is a folder, not a recipe"):
        recipe.load(".")
