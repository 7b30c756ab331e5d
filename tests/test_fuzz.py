"""The fuzzer itself: it finds a fault, names the case that finds it again, and knows a hang."""

import subprocess
import sys

from conftest import ROOT


def fuzz(*words: str, before: str = "") -> subprocess.CompletedProcess:
    program = f"import sys, fuzz\n{before}\nsys.argv = {['fuzz.py', *words]!r}\nsys.exit(fuzz.main())"
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "tests", capture_output=True, text=True, check=False
    )


def test_what_is_answered_is_no_fault():
    done = fuzz("recipes", "overrides", "--seeds", "0-20")
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("20 recipes, 20 overrides: 0 faults in ")


def test_what_is_not_answered_is_one_and_its_seed_is_named():
    unanswered = "from llmkit import recipe\nload, count = recipe.load, iter(range(99))\n"
    unanswered += "recipe.load = lambda *w, **k: 1 / 0 if next(count) == 3 else load(*w, **k)"
    done = fuzz("recipes", "--seeds", "5-10", before=unanswered)
    assert done.returncode == 1
    assert done.stdout.count("==== ") == 1
    assert "==== recipes 8\nTraceback" in done.stdout
    assert "ZeroDivisionError" in done.stdout
    assert "5 recipes: 1 faults" in done.stdout


def test_a_hang_is_one_too():
    hangs = "import time\nfuzz.PATIENCE = 0.2\nfuzz.KINDS['recipes'] = lambda dice, place: time.sleep(9)"
    done = fuzz("recipes", "--seeds", "0", before=hangs)
    assert done.returncode == 1
    assert "TooLong" in done.stdout


def test_for_a_while_the_seeds_that_found_a_fault_come_first():
    notes = "fuzz.FOUND = {'recipes': (777,)}\nseen = []\n"
    notes += "fuzz.KINDS['recipes'] = lambda dice, place: seen.append(1)\n"
    notes += "real = fuzz.fault\nfuzz.fault = lambda kind, seed: (print('case', seed), real(kind, seed))[1]"
    done = fuzz("recipes", "--seconds", "0.05", before=notes)
    cases = [line.removeprefix("case ") for line in done.stdout.splitlines() if line.startswith("case ")]
    assert cases[:3] == ["777", "0", "1"]
