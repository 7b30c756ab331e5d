"""`llmkit plan`: what is shown, and what programs read."""

import json

import pytest

from llmkit.errors import UserError
from llmkit.plan import gpus, show

KEYS = {
    *("recipe", "task", "model", "parameters", "data", "batch", "steps", "precision", "memory", "disk"),
    *("flops", "fits", "measured", "gpus", "notes"),
}


class Traced:
    """A step whose peak is a straight line, as long as it is not too small."""

    def __init__(self, peak):
        self.peak = peak


@pytest.mark.parametrize(("memory", "largest"), [(1000, 90), (205, 10), (115, 1), (110, 1), (109, 0)])
def test_the_largest_micro_batch_is_found(memory, largest):
    def tracer(per_device_train_batch_size):
        return Traced(100 + 10 * per_device_train_batch_size)

    assert show._largest(memory, 8, tracer(8), tracer, None) == largest


def test_of_rows_no_more_than_there_are():
    def tracer(per_device_train_batch_size):
        return Traced(per_device_train_batch_size)

    assert show._largest(1000, 8, tracer(8), tracer, 30) == 30


def test_a_peak_that_is_flat_for_small_batches_is_followed_where_it_rises():
    def tracer(per_device_train_batch_size):
        return Traced(max(500, 10 * per_device_train_batch_size))

    assert show._largest(1000, 8, tracer(8), tracer, None) == 100


@pytest.mark.parametrize(("text", "size"), [("24GB", 24e9), ("800MB", 8e8), ("16gib", 16 * 2**30), ("1.5G", 1.5e9)])
def test_sizes_are_read(text, size):
    assert show.in_memory(text) == size


@pytest.mark.parametrize("text", ["24", "GB", "-3GB", "24TBs", "", "nanGB", "infGB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UserError, match="is not a size"):
        show.in_memory(text)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "under 1 s"), (42, "42 s"), (180, "3 min"), (18_720, "5.2 h"), (1e6, "11.6 days")]
)
def test_times_are_said_in_one_unit(seconds, said):
    assert show.duration(seconds) == said


def test_on_paper_gpus_divide_what_does_not_fit():
    rows = {(row.gpu, row.count): row for row in gpus.on_paper(1e18, weights_and_state=100e9, rest=10e9)}
    assert [rows["H100 SXM", count].way for count in (1, 8, 64)] == [None, "FSDP", "FSDP"]
    assert [rows["B200", count].way for count in (1, 8)] == ["one", "DDP"]
    assert rows["L4", 8].way == "FSDP"  # 12.5 + 10 GB
    assert rows["H100 SXM", 8].seconds == pytest.approx(1e18 / (989e12 * gpus.UTILISATION * 8))


def test_a_program_reads_one_object(workplace, llmkit):
    done = llmkit("plan", "causal.toml", "--json", "--memory", "1GB")
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    assert set(record) == KEYS
    memory = record["memory"]
    kinds = ("weights", "gradients", "optimizer", "activations", "logits")
    assert memory["peak"] == sum(memory[kind] for kind in kinds)
    assert (memory["by"], record["steps"], record["batch"]["per_step"]) == ("trace", 6, 8 * 16)
    assert record["fits"]["largest"] > 100
    assert record["fits"]["changes"] == []
    assert not list(workplace.glob("runs"))


def test_what_does_not_fit_comes_with_what_to_change(workplace, llmkit):
    done = llmkit("plan", "causal.toml", "--json", "--memory", "1MB")
    fits = json.loads(done.stdout)["fits"]
    assert fits["largest"] < 8
    assert {change["override"] for change in fits["changes"]} >= {"trainer.activation_checkpointing=true"}
    if fits["largest"]:
        again = llmkit("plan", "causal.toml", *fits["overrides"], "--json")
        assert json.loads(again.stdout)["memory"]["peak"] <= 1e6
        assert json.loads(again.stdout)["batch"]["per_step"] == 8 * 16


def test_people_read_lines(workplace, llmkit):
    done = llmkit("plan", "causal.toml")
    names = [line.split(" ")[0] for line in done.stdout.splitlines() if line[:1].strip()]
    assert names[:6] == ["recipe", "parameters", "a", "steps", "memory", "disk"]
    assert "(traced)" in done.stdout


def test_ten_steps_are_measured_and_nothing_is_left(workplace, llmkit):
    done = llmkit("plan", "causal.toml", "--measure", "--price", "3600", "--json")
    assert done.exit_code == 0, done.stderr
    timed = json.loads(done.stdout)["measured"]
    assert timed["steps"] == 10
    assert 0 < timed["fastest"] <= timed["step_seconds"] <= timed["slowest"]
    assert timed["cost"] == pytest.approx(timed["total_seconds"]) == pytest.approx(6 * timed["step_seconds"])
    assert sorted(path.name for path in workplace.iterdir() if path.is_dir()) == []


def test_a_price_without_a_time_is_refused(workplace, llmkit):
    done = llmkit("plan", "causal.toml", "--price", "2")
    assert done.exit_code == 2
    assert "--measure" in done.stderr


@pytest.mark.parametrize("command", [["pretrain"], ["pretrain", "--dry-run"]])
def test_a_run_and_a_dry_run_say_what_they_take(command, workplace, llmkit):
    done = llmkit(command[0], "causal.toml", *command[1:])
    assert done.stderr.count("at the peak of a step") == 1
    assert "operations a step" in done.stderr
    assert "what a batch takes" not in done.stderr


def test_a_plan_says_at_once_what_the_formula_says(workplace, llmkit):
    done = llmkit("plan", "causal.toml")
    assert done.stderr.splitlines()[0].startswith("memory          about ")
    assert llmkit("plan", "causal.toml", "--json").stderr == ""
