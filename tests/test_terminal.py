"""Lines for people: wrapped at a terminal's width and coloured there, whole and plain in a file."""

import contextlib
import io
import logging
import math
import os
import pty
import re
import select
import shutil
import sys
import termios
import traceback
from pathlib import Path

import pytest
import torch
import tqdm
import typer
from conftest import CAUSAL, byte_tokenizer

from llmkit import terminal
from llmkit.cli import app
from llmkit.errors import UserError, say
from llmkit.terminal import columns, columns_of, laid_out, sparkline

WARNING = (
    "warning  no better than the baseline: the difference is in eval_loss -0.0100 to +0.0300 "
    "(95 % interval, + is better)"
)
HINT = (
    'hint: let it go on from a text: llmkit generate "Once upon a time" --model runs/a; or teach it to answer: '
    "llmkit finetune --task chat model.name=runs/my-very-first-model"
)
TRY = "try it: llmkit predict runs/animals 'the fox saw 3 of the hens, it'\"'\"'s said; twice'"


@pytest.fixture
def wide(monkeypatch):
    """A terminal of so many columns, in which a line is laid out."""
    monkeypatch.setenv("NO_COLOR", "1")

    def lay_out(line, width, left=0):
        monkeypatch.setenv(terminal.TERMINAL, str(width))
        return laid_out(line, sys.stderr, left).split("\n")

    return lay_out


@pytest.mark.parametrize("width", [80, 50, 40])
@pytest.mark.parametrize(
    ("line", "indent"),
    [
        (WARNING, 9),
        ("         " + "  half up to 12, 95% up to 18, and so on " * 3, 11),
        ("error: " + "the tokenizer has no chat template and has not learned to answer " * 2, 7),
        ("  detail: " + "one of several mistakes that were found at once " * 3, 4),
        ("going on from here, " + "and for a long time, " * 6, 2),
    ],
)
def test_a_line_goes_on_below_its_text(line, indent, width, wide):
    first, *rest = wide(line, width)
    assert rest
    assert max(map(len, (first, *rest))) <= width
    assert {len(each) - len(each.lstrip()) for each in rest} == {indent}
    assert " ".join(" ".join([first, *rest]).split()) == " ".join(line.split())  # no word is lost or broken


@pytest.mark.parametrize("width", [38, 30, 20, 1])
def test_in_a_very_narrow_terminal_no_room_goes_to_an_indent(width, wide):
    first, *rest = wide(WARNING, width)
    assert max(map(len, (first, *rest))) <= max(width, terminal.LEAST)
    assert {len(each) - len(each.lstrip()) for each in rest} == {2}


def test_a_report_has_names_of_its_own_width(wide):
    first, *rest = wide(f"{'learning rate':16}up to 5e-05 over 10 steps (10.0%), then linear", 50, left=16)
    assert first.startswith("learning rate   up to")
    assert rest == [" " * 16 + "then linear"]


@pytest.mark.parametrize("width", [80, 50, 30, 20])
def test_a_command_is_never_broken(width, wide):
    commands = (
        'llmkit generate "Once upon a time" --model runs/a',
        "llmkit finetune --task chat model.name=runs/my-very-first-model",
    )
    lines = wide(HINT, width)
    assert all(any(command in line for line in lines) for command in commands)
    (told,) = (line for line in wide(TRY, width) if "llmkit" in line)
    assert told.endswith(TRY.removeprefix("try it: "))
    longest = "`llmkit finetune 'my recipe.toml' data.path='my data.csv' --dry-run`"
    assert any(longest in line for line in wide(f"hint: look at it first: {longest} shows what is in it", width))


def test_a_command_that_is_longer_than_the_line_begins_one(wide):
    assert wide(TRY, 50) == ["try it: ", "  " + TRY.removeprefix("try it: ")]


def test_every_command_of_ours_is_known(wide):
    for name in typer.main.get_command(app).commands:
        line = f"there is much to say of it: llmkit {name} some words of it, and more"
        assert any(f"llmkit {name} some words of it," in each for each in wide(line, 30)), name


def test_a_path_with_blanks_is_not_broken(wide):
    path = "`/home/me/my data/of last year/a b.csv`"
    assert any(path in line for line in wide(f"note     {path}: 3 lines repeat the header", 50))


def test_a_lone_backtick_holds_nothing_together(wide):
    assert max(map(len, wide("error: an odd ` stands in here, and the line goes on for long after it", 40))) <= 40


@pytest.mark.parametrize("width", [80, 50])
def test_wide_characters_take_two_columns(width, wide):
    lines = wide("note     " + "很好的电影 " * 20, width)
    assert max(map(columns_of, lines)) <= width
    assert max(map(columns_of, lines)) > width - 11  # and no room is wasted
    assert "".join(lines).count("很好的电影") == 20


def test_what_a_terminal_would_obey_is_shown(wide, capsys):
    (line,) = wide("note     `a\x1b[2J\r\u202eb`", 80)
    assert line == r"note     `a\x1b[2J\r\u202eb`"
    say(*UserError("no file `a\nerror: `", "look\x07").lines())
    assert capsys.readouterr().err == "error: no file `a\\nerror: `\nhint: look\\x07\n"


def test_in_a_file_a_line_is_whole_and_plain(monkeypatch, capsys):
    monkeypatch.delenv(terminal.TERMINAL, raising=False)
    monkeypatch.setenv("COLUMNS", "50")
    say(WARNING, HINT)
    assert capsys.readouterr().err == f"{WARNING}\n{HINT}\n"


# --- colour -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [
        ({}, True),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, True),
        ({"TERM": "dumb"}, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ({terminal.TERMINAL: None}, False),
        ({terminal.TERMINAL: None, "FORCE_COLOR": "1"}, True),
    ],
)
def test_there_is_colour_where_it_is_wanted(variables, coloured, monkeypatch):
    for name, value in {"TERM": "xterm", "NO_COLOR": None, "FORCE_COLOR": None, terminal.TERMINAL: "80"}.items():
        value = variables.get(name, value)
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    line = laid_out("error: try `llmkit data a.csv`", io.StringIO())
    assert (line == "\x1b[1;31merror: \x1b[0mtry \x1b[36m`llmkit data a.csv`\x1b[0m") == coloured
    assert ("\x1b" in line) == coloured


@pytest.mark.parametrize("line", [WARNING, HINT, TRY, "note     " + "很好 " * 40])
def test_colour_moves_nothing(line, monkeypatch, wide):
    plain = wide(line, 50)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR")
    coloured = laid_out(line, sys.stderr)
    assert "\x1b" in coloured
    for style in {"0", *terminal._STYLES.values(), terminal._QUIET, terminal._TYPED}:
        coloured = coloured.replace(f"\x1b[{style}m", "")
    assert coloured.split("\n") == plain


# --- the terminal -----------------------------------------------------------------------------------------------------


def test_the_width_is_that_of_this_moment(monkeypatch):
    monkeypatch.delenv(terminal.TERMINAL, raising=False)
    ours, theirs = pty.openpty()
    with os.fdopen(ours), os.fdopen(theirs, "w") as stream:
        for width in (50, 120, 8):
            termios.tcsetwinsize(theirs, (24, width))
            assert columns(stream) == max(width, terminal.LEAST)
        termios.tcsetwinsize(theirs, (0, 0))  # it does not tell
        assert columns(stream) == terminal.USUAL
    assert columns(io.StringIO()) is None
    assert columns(stream) is None  # closed


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([2.0], "▁"),
        ([2.0, 2.0, 2.0], "▁▁▁"),
        ([math.nan, math.inf], "xx"),
        ([8.0, 7.0, math.nan, 1.0], "█▇x▁"),
        ([1e308] * 9, "xx"),
        ([4.0, 2.0, 3.0, 1.0, 0.0, 0.0], "█▆▁"),
    ],
)
def test_the_course_of_a_loss_is_drawn(values, drawn):
    assert sparkline(values, len(drawn)) == drawn


def test_nothing_is_drawn_where_the_encoding_has_no_bars():
    assert not terminal.draws(io.TextIOWrapper(io.BytesIO(), "latin-1"))
    assert terminal.draws(io.TextIOWrapper(io.BytesIO(), "utf-8"))


# --- what a terminal would obey ---------------------------------------------------------------------------------------

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\x00\x08"
ESCAPED = r"\x1b]0;owned\x07\x1b[2J\x9b31m\x00\x08"


@contextlib.contextmanager
def a_terminal():
    """Stdout and stderr go to a terminal, as a command begins; yields a function that tells what it was sent."""
    ours, theirs = pty.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST  # a line feed is sent as it is
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    termios.tcsetwinsize(theirs, (24, 200))

    def sent():
        sys.stdout.flush()
        said = b""
        while select.select([ours], [], [], 0.05)[0]:
            said += os.read(ours, 65536)
        return said.decode()

    with os.fdopen(theirs, "w", encoding="utf-8") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        terminal.guard()
        yield sent
    os.close(ours)


def test_on_a_terminal_control_characters_are_shown_but_line_ends_and_tabs():
    with a_terminal() as screen:
        print(f"a\tb\r\n{EVIL}")  # noqa: T201
        assert screen() == f"a\tb\\r\n{ESCAPED}\n"
        for character in ("\x1b[", "31", "m", "\r"):  # as a model's text comes
            print(character, end="", flush=True)  # noqa: T201
        assert screen() == r"\x1b[31m\r"
        sys.stdout.writelines(["é 很好 👩‍👧\n", "\ud800\u202e"])
        assert screen() == "é 很好 👩‍👧\n\\ud800\\u202e"


def test_what_libraries_say_on_a_terminal_is_shown_too():
    with a_terminal() as screen:
        logger = logging.Logger("of a library")
        logger.addHandler(logging.StreamHandler())
        logger.warning("the file %s", EVIL)
        assert screen() == f"the file {ESCAPED}\n"
        traceback.print_exception(ValueError(EVIL))
        assert screen() == f"ValueError: {ESCAPED}\n"


def test_a_bar_moves_and_its_name_does_not():
    with a_terminal() as screen:
        with tqdm.tqdm(total=2, desc=f"a\r{EVIL}", file=sys.stderr) as bar, tqdm.tqdm(total=2, position=1):
            bar.update(1)
            say("a line in between")
        sent = screen()
        assert f"\ra\\r{ESCAPED}" in sent
        assert "\x1b[A" in sent
        assert set(re.findall("[\x00-\x1f\x7f-\x9f]", sent.replace("\x1b[A", ""))) <= {"\r", "\n"}
        assert "a line in between\n" in sent


def test_a_streamer_of_transformers_is_no_way_out():
    with a_terminal() as screen:
        from transformers import TextStreamer

        streamer = TextStreamer(byte_tokenizer())
        ids = streamer.tokenizer(f"Once\n{EVIL}\tupon a time\n")["input_ids"]
        for token in ids:
            streamer.put(torch.tensor([token]))
        streamer.end()
        assert screen() == f"Once\n{ESCAPED}\tupon a time\n\n"


def test_colours_of_ours_are_sent(monkeypatch):
    with a_terminal() as screen:
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm")
        say(f"error: {EVIL}")
        assert screen() == f"\x1b[1;31merror: \x1b[0m{ESCAPED}\n"
        terminal.show(laid_out("hint: x", sys.stdout))
        assert screen() == "\x1b[36mhint: \x1b[0mx\n"


def test_what_is_no_terminal_gets_the_text_as_it_is(monkeypatch, tmp_path):
    with (tmp_path / "out").open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        terminal.guard()
        print(EVIL)  # noqa: T201
    assert (tmp_path / "out").read_text() == f"{EVIL}\n"


def on_a_terminal(*words):
    """What a command sends to a terminal, which is its stdin, stdout and stderr."""
    process, ours = pty.fork()
    if not process:
        os.environ["NO_COLOR"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "llmkit", *words])
    sent = b""
    with contextlib.suppress(OSError):
        while more := os.read(ours, 65536):
            sent += more
    os.waitpid(process, 0)
    os.close(ours)
    return sent.decode()


@pytest.mark.long
def test_no_command_lets_a_terminal_obey_what_it_was_given(workplace):
    name = f"{EVIL.replace(chr(0), '')}.txt"
    shutil.copy("corpus.txt", name)
    Path("rows.csv").write_text(f"text,label\n{EVIL},{EVIL}a\nb,c\n" * 20)
    Path("mine.toml").write_text(CAUSAL.replace("corpus.txt", "none.txt") + f"# {EVIL}\n")
    commands = {
        ("pretrain", "causal.toml", f"data.path={name}"): "finished",
        ("generate", f"the fox {EVIL.replace(chr(0), '')}", "--model", "runs/causal", "max_new_tokens=2"): "the fox",
        ("data", "rows.csv"): "owned",
        ("recipes", "show", "mine.toml"): "owned",
        ("runs",): "causal-lm",
        ("runs", "--format", "csv"): "owned",
        ("check", "\x1b[2J"): "[2J",
    }
    for words, expected in commands.items():
        sent = on_a_terminal(*words)
        if words[0] == "pretrain":
            shutil.copytree("runs/causal", f"runs/{name}")
        assert expected in sent, (words, sent)
        left = re.sub("\r\n|\t|\r|\x1b\\[A|\x1b\\[K", "", sent)
        assert re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f]", left) == [], (words, sent)
