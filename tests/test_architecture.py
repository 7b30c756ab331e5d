"""Imports go down one line only; heavy ones stay out of the rooms that `--help` enters."""

import ast
from pathlib import Path

from conftest import ROOT

# From the command down to the errors: a module imports only what stands further down.
LINE = (
    *(
        "llmkit.__main__",
        "llmkit.cli",
        "llmkit.arithmetic",
        "llmkit.repeat",
        "llmkit.launch",
        "llmkit.evaluate",
        "llmkit.check",
    ),
    *(
        "llmkit.train",
        "llmkit.chatting",
        "llmkit.prompts",
        "llmkit.generate",
        "llmkit.prefill",
        "llmkit.predict",
        "llmkit.merge",
        "llmkit.report",
    ),
    *(
        "llmkit.assemble",
        "llmkit.memory",
        "llmkit.trainer",
        "llmkit.head",
        "llmkit.splitting",
        "llmkit.dropout",
        "llmkit.stopping",
        "llmkit.resuming",
        "llmkit.progress",
        "llmkit.clock",
        "llmkit.guard",
        "llmkit.state",
        "llmkit.tasks",
        "llmkit.tasks.multi_task",
    ),
    *("llmkit.tasks.replaced_token_detection", "llmkit.tasks.masked_lm", "llmkit.tasks.denoising"),
    *("llmkit.tasks.chat", "llmkit.tasks.seq2seq", "llmkit.tasks.causal_lm"),
    *("llmkit.tasks.text_classification", "llmkit.tasks.question_answering"),
    *("llmkit.tasks.token_classification", "llmkit.tasks.multiple_choice"),
    *(
        "llmkit.vocabulary",
        "llmkit.tokenizer",
        "llmkit.model",
        "llmkit.fitting",
        "llmkit.adapt",
        "llmkit.reload",
        "llmkit.quantize",
    ),
    *(
        "llmkit.data",
        "llmkit.data.look",
        "llmkit.data.labels",
        "llmkit.data.sources",
        "llmkit.data.mixture",
        "llmkit.data.cleaning",
        "llmkit.data.cleaning.clean",
    ),
    *(
        "llmkit.data.cleaning.duplicates",
        "llmkit.data.cleaning.filters",
        "llmkit.data.cleaning.scrub",
        "llmkit.data.cleaning.mend",
        "llmkit.data.augment",
    ),
    *(
        "llmkit.data.examples",
        "llmkit.data.pack",
        "llmkit.data.tokens",
        "llmkit.data.encode",
        "llmkit.data.wordwise",
        "llmkit.data.read",
    ),
    *("llmkit.data.table", "llmkit.data.files", "llmkit.data.corrupt", "llmkit.data.boundaries", "llmkit.data.words"),
    *(
        "llmkit.metrics",
        "llmkit.changes",
        "llmkit.checkpoint",
        "llmkit.run",
        "llmkit.hub",
        "llmkit.rank",
        "llmkit.cpu",
        "llmkit.recipe",
        "llmkit.recipe.check",
        "llmkit.recipe.paths",
    ),
    *("llmkit.recipe.named", "llmkit.recipe.draft", "llmkit.recipe.schema", "llmkit.recipe.datatables"),
    *("llmkit.recipe.cleaning", "llmkit.recipe.table", "llmkit.recipe.upstream", "llmkit.recipe.keytype"),
    *("llmkit.recipe.tomltext", "llmkit.errors", "llmkit"),
)


def modules() -> dict[str, Path]:
    files = (ROOT / "llmkit").rglob("*.py")
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


def imported(file: Path) -> set[str]:
    """The llmkit modules that a file imports, inside functions too."""
    known = set(modules())
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "llmkit":
            found |= {f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in known}
            if any(f"{node.module}.{alias.name}" not in known for alias in node.names):
                found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
    return found


def test_every_module_has_its_place_on_the_line():
    assert set(modules()) == set(LINE)


def test_imports_go_down_the_line_only():
    upward = [
        f"{name} imports {other}"
        for name, file in modules().items()
        for other in imported(file)
        if LINE.index(other) <= LINE.index(name)
    ]
    assert upward == []


def test_three_hops_from_the_command_to_training():
    """cli -> launch -> train, where Trainer.train() is called: nowhere else."""
    callers = [name for name, file in modules().items() if "trainer.train(" in file.read_text()]
    assert callers == ["llmkit.train"]
    assert "llmkit.launch" in imported(modules()["llmkit.cli"])
    assert "llmkit.train" in imported(modules()["llmkit.launch"])
