"""docs/reliability.md promises nothing that no test shows: its table of faults is complete, and each test is there."""

import ast
import re

import pytest
from conftest import ROOT

TEXT = (ROOT / "docs/reliability.md").read_text()
TABLE = TEXT.partition("## Fault by fault")[2]
FAULTS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TABLE.splitlines() if re.match(r"\| \d", line)]
NAMED = re.compile(r"`((?:\w+/)*test_\w+\.py)::(test_\w+)`")
NO_TEST = re.compile(r"(cannot be tested here|not tested)[^:]*: \w.{20,}")  # a reason follows


def functions(file: str) -> set[str]:
    """The tests of a file, which is read and not imported."""
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_faults_are_numbered_in_their_order():
    assert [int(number) for number, *_ in FAULTS] == list(range(1, len(FAULTS) + 1))
    assert len(FAULTS) >= 71
    assert all(fault and done for _, fault, done, _ in FAULTS)


@pytest.mark.parametrize("row", FAULTS, ids=[row[0] for row in FAULTS])
def test_each_fault_has_a_test_or_a_reason(row):
    shown = row[3]
    assert NAMED.search(shown) or NO_TEST.fullmatch(shown), f"row {row[0]}: {shown}"
    assert "TODO" not in shown


def test_every_test_that_is_named_is_there():
    named = NAMED.findall(TEXT)
    tests = {file: functions(file) for file, _ in named if (ROOT / "tests" / file).is_file()}
    assert [f"{file}::{name}" for file, name in named if name not in tests.get(file, ())] == []
    assert len(re.findall(r"`(?:\w+/)*test_", TEXT)) == len(named)  # each is spelt so that it is found


def test_every_test_that_is_slow_is_there():
    slow = [line.removeprefix("tests/").split("::") for line in (ROOT / "tests/slow.txt").read_text().splitlines()]
    tests = {file: functions(file) for file in {file for file, _ in slow}}
    assert [f"{file}::{name}" for file, name in slow if name not in tests[file]] == []


def test_prose_keeps_to_the_lines_of_the_project():
    long = [line for line in TEXT.splitlines() if len(line) > 120 and not line.startswith("|")]
    assert long == []
