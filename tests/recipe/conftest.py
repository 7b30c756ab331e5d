"""What tests of recipes share."""

import pytest


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a recipe; the working directory is another folder than the recipe's."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def write_recipe(text, name="r.toml"):
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return str(file)

    return write_recipe
