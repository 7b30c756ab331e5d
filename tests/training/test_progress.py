"""What a run says while it trains: in a terminal and in a file."""

import re
from types import SimpleNamespace

import pytest

from llmkit import terminal
from llmkit.training import progress


@pytest.fixture
def in_a_terminal(monkeypatch):
    monkeypatch.setenv(terminal.TERMINAL, "80")
    monkeypatch.setenv("NO_COLOR", "1")


EVALUATED = ("trainer.eval_strategy=steps", "trainer.eval_steps=3")


def test_in_a_terminal_the_lines_stay_above_the_bar(workplace, llmkit, in_a_terminal):
    done = llmkit("pretrain", "causal.toml", *EVALUATED)
    assert done.exit_code == 0, done.stderr
    stays = [line.rpartition("\r")[2].rstrip() for line in done.stderr.split("\n")]
    assert [line.split()[1] for line in stays if re.match(r"step \d/6  loss ", line)] == [f"{i}/6" for i in range(1, 7)]
    assert [line.split()[1] for line in stays if re.match(r"step \d/6  eval_loss ", line)] == ["3/6", "6/6"]
    assert not any("tokens/s" in line or "%|" in line for line in stays)
    bars = re.findall(r"\r *\d+%\|[^\r\n]*", done.stderr)
    assert any("tokens/s" in bar for bar in bars)
    assert max(map(terminal.columns_of, stays + bars)) <= 81  # with the carriage return


def test_in_a_file_each_line_has_speed_and_time(workplace, llmkit):
    done = llmkit("pretrain", "causal.toml")
    lines = [line for line in done.stderr.splitlines() if "  loss " in line]
    assert all(re.fullmatch(r"step \d/6  loss \S+  lr \S+  \S+ tokens/s  \S+ left", line) for line in lines)
    assert len(lines) == 6
    assert "\r" not in done.stderr


@pytest.mark.parametrize("where", ["terminal", "file"])
def test_once_steps_take_alike_the_time_left_is_told_once(where, workplace, llmkit, monkeypatch, request):
    if where == "terminal":
        request.getfixturevalue("in_a_terminal")
    monkeypatch.setattr(progress, "LEAST_LEFT", 0)
    monkeypatch.setattr(progress, "ALIKE", 1e6)  # on a busy machine they do not
    steps = ("trainer.max_steps=24", "trainer.logging_steps=100")
    told = [
        line.rpartition("\r")[2]
        for line in llmkit("pretrain", "causal.toml", *steps).stderr.split("\n")
        if "training left" in line
    ]
    assert [re.sub(r"\d+:\d\d", "M:SS", line) for line in told] == ["time     about M:SS of training left"]
    monkeypatch.setattr(progress, "LEAST_LEFT", 10)  # seconds: a line that nobody could read in time
    assert "training left" not in llmkit("pretrain", "causal.toml", *steps).stderr
    monkeypatch.setattr(progress, "LEAST_LEFT", 0)
    assert "training left" not in llmkit("pretrain", "causal.toml").stderr  # six steps


@pytest.mark.parametrize(
    ("seconds", "told_at"),
    [
        (lambda step: 1.0, 20),
        (lambda step: 6.0 if step <= 12 else 1.0, 40),  # shapes of batches are met for the first time
        (lambda step: 9.0 if step <= 3 else 1.0, 30),
        (lambda step: 1.0 + step % 2 / 5, 20),
    ],
)
def test_the_time_left_is_told_when_it_is_known_within_a_factor_of_a_half(seconds, told_at, monkeypatch):
    now, said = [0.0], []
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(progress, "say", lambda line: said.append((state.global_step, line)))
    monkeypatch.setattr(progress, "clock", lambda left: f"{left:.3f}")
    shown, state = progress.Progress(1, "examples"), SimpleNamespace(max_steps=300, global_step=0)
    args = SimpleNamespace(device=SimpleNamespace(type="cpu"))
    for step in range(1, 301):
        shown.on_step_begin(args, state, None)
        now[0] += seconds(step)
        state.global_step = step
        shown.on_step_end(args, state, None)
    ((at, line),) = said
    assert at == told_at
    left = float(re.search(r"about (\S+) of", line)[1])
    truth = sum(map(seconds, range(at + 1, 301)))
    assert 1 / 1.5 < left / truth < 1.5


def test_at_its_end_a_run_draws_the_course_of_its_loss(workplace, llmkit, monkeypatch):
    done = llmkit("pretrain", "causal.toml")
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("loss "))
    logged = re.findall(r"step \d/6  loss (\S+)", done.stderr)
    assert re.fullmatch(rf"loss     [▁▂▃▄▅▆▇█]{{6}}  from {logged[0]} to {logged[-1]}", line)
    assert done.stderr.index("finished in") < done.stderr.index(line) < done.stderr.index("try it:")
    one = llmkit("pretrain", "causal.toml", "trainer.max_steps=1")  # which has no course
    assert not any(line.startswith("loss ") for line in one.stderr.splitlines())
