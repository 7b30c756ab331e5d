"""The wheel carries every module and every recipe: nothing that .gitignore names is one of them."""

import subprocess
import sys
import zipfile

from conftest import ROOT


def test_the_wheel_has_the_modules_of_the_tree_and_the_recipes(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("llmkit/")}
    modules = {file.relative_to(ROOT).as_posix() for file in (ROOT / "llmkit").rglob("*.py")}
    recipes = {f"llmkit/{file.relative_to(ROOT).as_posix()}" for file in (ROOT / "recipes").rglob("*.toml")}
    assert modules | recipes <= packed
    assert {name for name in packed if name.endswith(".py") and "/recipes/" not in name} == modules
