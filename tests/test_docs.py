"""docs/: every function that a page names is there, and pages keep to the lines of the project."""

import ast
import re

import pytest
from conftest import ROOT

from llmkit.data.describe import describe
from llmkit.recipe import schema
from llmkit.recipe.keys import key_type
from llmkit.recipe.toml import split_key

DOCS = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts]
PAGES = [*DOCS, ROOT / "CONTRIBUTING.md", ROOT / "README.md"]
MODULES = {}
for file in (ROOT / "llmkit").rglob("*.py"):
    name = file.parent.name if file.stem == "__init__" else file.stem
    tree = ast.parse(file.read_text())
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    defined |= {
        t.id for node in tree.body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)
    }
    defined |= {n.target.id for n in tree.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    MODULES.setdefault(name, set()).update(defined)
CLASSES = {name for defined in MODULES.values() for name in defined if name[:1].isupper()}


def test_the_architecture_names_what_is_there():
    text = (ROOT / "docs/architecture.md").read_text()
    named = re.findall(r"`(\w+)\.(\w+)`", text)
    assert len(named) > 40
    assert [f"{a}.{b}" for a, b in named if b not in MODULES.get(a, ()) and a not in CLASSES] == []


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_a_page_keeps_to_the_lines_of_the_project(page):
    assert [line for line in page.read_text().splitlines() if len(line) > 120 and not line.startswith("|")] == []


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_a_link_of_a_page_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


# The rows on docs/data.md: the task that each is read for, found without being told, and what it holds.
SHAPES = (
    ("text-classification", "labels"),
    ("token-classification", "labels"),
    ("token-classification", "labels"),
    ("question-answering", "answered"),
    ("multiple-choice", "labels"),
    ("seq2seq", "lengths"),
    ("chat", "lengths"),
)


def test_the_rows_of_the_data_page_are_read_as_it_says(tmp_path):
    blocks = re.findall(r"```(csv|jsonl)\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    assert len(blocks) == len(SHAPES)
    for (suffix, rows), (task, told) in zip(blocks, SHAPES, strict=True):
        file = tmp_path / f"rows.{suffix}"
        file.write_text(rows)
        lines = "\n".join(describe(str(file), None, []))
        assert f"task       {task}" in lines
        assert told in lines
        assert "left out" not in lines
        assert "refused" not in lines


def test_a_heading_of_troubleshooting_is_a_message():
    """The words of a heading stand in a message of the code; two at the end are about no message."""
    said = []
    for file in (ROOT / "llmkit").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                said.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.append(node.value)
    messages = "\n".join(said)
    headings = re.findall(r"^## (.+)$", (ROOT / "docs/help/troubleshooting.md").read_text(), re.MULTILINE)
    assert len(headings) > 25
    unknown = [part for each in headings[:-2] for part in each.split("...") if part.strip() and part not in messages]
    assert unknown == []


TABLES = "model|tokenizer|data|evaluation|trainer|lora|generation|samples|early_stopping|optimizer|guard|speed|report"
MISTAKEN = {"data.blok_size", "trainer.warmup_ratio"}  # which pages show with the error that comes
GUIDES = [page for page in DOCS if page.parent.name in ("start", "tutorials", "guide", "concepts", "help", "docs")]


@pytest.mark.parametrize("page", GUIDES, ids=[page.stem for page in GUIDES])
def test_a_key_that_a_page_names_is_one_of_a_recipe(page):
    text = page.read_text()
    named = set(re.findall(rf"(?<![\w./])(?:{TABLES})\.[a-z][a-z0-9_.]*[a-z0-9](?![\w/(*])", text)) - MISTAKEN
    named = {key for key in named if not key.endswith((".html", ".md", ".safetensors", ".json", ".onnx", ".pt"))}
    modules = {f"{a}.{b}" for a, b in re.findall(r"`(\w+)\.(\w+)`", text) if b in MODULES.get(a, ())}  # a function
    unknown = {key for key in named - modules if not any(key_type(split_key(key), task) for task in schema.TASKS)}
    assert sorted(unknown) == []
