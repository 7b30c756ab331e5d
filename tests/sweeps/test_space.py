"""What is swept: values apart by commas, ranges, trials that are drawn, and their names."""

import math

import pytest

from llmkit.recipe.draft import read_value
from llmkit.sweeps import space
from llmkit.sweeps.space import Axis

TASK = "text-classification"


@pytest.mark.parametrize(
    ("argument", "key", "values"),
    [
        ("trainer.learning_rate=1e-5,3e-5,1e-4", "trainer.learning_rate", [1e-5, 3e-5, 1e-4]),
        ("lora.r=8, 16", "lora.r", [8, 16]),
        ('lora.target_modules=["q","v"],["q", "k"]', "lora.target_modules", [["q", "v"], ["q", "k"]]),
        ('trainer.lr_scheduler_kwargs={a = [1, 2], b = "x,y"},{}', None, [{"a": [1, 2], "b": "x,y"}, {}]),
        ("model.name=a/b,runs/bert-2", "model.name", ["a/b", "runs/bert-2"]),
        ("trainer.lr_scheduler_type=linear,cosine", "trainer.lr_scheduler_type", ["linear", "cosine"]),
        ("trainer.bf16=true,false", "trainer.bf16", [True, False]),
        ("trainer.learning_rate=1e-5..1e-3", "trainer.learning_rate", "1e-5..1e-3"),
    ],
)
def test_values_are_read_as_the_command_line_reads_one(argument, key, values):
    assert space.values_of(argument, TASK) == (key or argument.partition("=")[0], values)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("trainer.learning_rate", "write KEY=VALUE,VALUE,... or KEY=LOW..HIGH"),
        ("trainer.learning_rate=", "write KEY=VALUE,VALUE"),
        ("trainer.learning_rate=1e-5,,1e-4", "nothing between two commas"),
        ("lora.r=8,", "nothing between two commas, or behind the last"),
        ("trainer.lerning_rate=1,2", "unknown key, did you mean `trainer.learning_rate`"),
        ("trainer.learning_rate=a,b", "must be a number, not a"),
        ("trainer.seed=1,2", "--seeds N"),
        ("task=chat,causal-lm", "a sweep is of one task"),
        ("report.write=true,false", "it changes no result"),
        ("a b=1,2", "is not a key of a recipe"),
    ],
)
def test_what_cannot_be_swept_is_refused(argument, said):
    with pytest.raises(ValueError, match=said.replace(".", r"\.").replace("(", r"\(")):
        space.values_of(argument, TASK)


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"lora.r": "1e-5..2"}, "must be an integer"),
        ({"trainer.learning_rate": "3..1"}, "from a smaller number to a larger one, not 3..1"),
        ({"trainer.learning_rate": []}, "must be an array of values or a range"),
        ({"trainer.learning_rate": 1e-3}, "must be an array of values or a range"),
        ({"trainer.learning_rate": [1e-3, 0.001]}, "0.001 is there twice"),
        ({"trainer": {"learning_rate": [1]}, "trainer.learning_rate": [2]}, "is swept twice"),
    ],
)
def test_mistakes_in_the_table_are_listed(over, said):
    _, mistakes = space.axes(over, TASK)
    assert len(mistakes) == 1
    assert said in mistakes[0]


def test_the_table_has_dotted_keys_or_tables():
    axes, mistakes = space.axes({"trainer": {"learning_rate": "1e-5..1e-3"}, "lora.r": [8, 16]}, TASK)
    assert mistakes == []
    assert [(axis.key, axis.values, axis.log) for axis in axes] == [
        ("trainer.learning_rate", (), True),
        ("lora.r", (8, 16), False),
    ]


@pytest.mark.parametrize(
    ("axis", "log"),
    [
        (Axis("k", low=1e-5, high=1e-3), True),
        (Axis("k", low=1, high=9), False),
        (Axis("k", low=1, high=10), True),
        (Axis("k", low=0.0, high=10.0), False),
        (Axis("k", (1e-4, 1e-2)), True),
        (Axis("k", (8, 16)), False),
        (Axis("k", ("a", "b")), False),
        (Axis("k", (True, False)), False),
    ],
)
def test_a_decade_and_more_is_logarithmic(axis, log):
    assert axis.log is log


def test_a_range_over_decades_is_drawn_by_its_logarithm():
    drawn = [each["k"] for each in space.at_random([Axis("k", low=1e-5, high=1e-1)], 400, seed=1)]
    assert all(1e-5 <= value <= 1e-1 and float(f"{value:.3g}") == value for value in drawn)
    in_decades = [sum(10**-power <= value < 10 ** (1 - power) for value in drawn) for power in (5, 4, 3, 2)]
    assert all(70 < count < 130 for count in in_decades)  # 100 each, 4.5 standard deviations
    whole = [each["k"] for each in space.at_random([Axis("k", low=1, high=64)], 1000, seed=1)]
    assert set(whole) <= set(range(1, 65)) and {1, 2, 64} <= set(whole) and len(whole) == len(set(whole)) == 64
    even = [each["k"] for each in space.at_random([Axis("k", low=0.0, high=0.5)], 400, seed=1)]
    assert math.isclose(sum(even) / 400, 0.25, abs_tol=0.03)


def test_the_seed_decides_and_no_two_trials_are_alike():
    over = [Axis("a", (1, 2, 3)), Axis("b", ("x", "y"))]
    assert space.at_random(over, 4, 1) == space.at_random(over, 4, 1) != space.at_random(over, 4, 2)
    every = space.at_random(over, 100, 1)
    assert len(every) == 6
    assert sorted(map(repr, every)) == sorted(map(repr, space.grid(over)))
    assert list(space.grid(over))[:3] == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}]


def test_names_are_safe_and_all_different():
    settings = [
        {"trainer.learning_rate": 3e-5, "lora.r": 8},
        {"trainer.learning_rate": -1, "lora.r": 8},
    ]
    assert [trial.name for trial in space.named(settings)] == ["learning_rate=3e-05,r=8", "learning_rate=-1,r=8"]
    same = [{"model.name": name} for name in ("a/b", "a b", "A-B", "x" * 300, "x" * 300 + "y", "../..", "模型")]
    names = [trial.name for trial in space.named(same)]
    assert len({name.lower() for name in names}) == len(names)
    assert all(len(name) <= 100 and "/" not in name and name[0] != "." and name.isascii() for name in names)
    assert space.short_keys(["a.x", "b.x", "b.y"]) == {"a.x": "a.x", "b.x": "b.x", "b.y": "y"}


def test_a_trial_is_typed_as_the_command_line_reads_it():
    settings = {
        "trainer.learning_rate": 3e-5,
        "model.name": "a/b",
        "lora.target_modules": ["q", "v"],
        "trainer.lr_scheduler_type": "cosine",
        "trainer.bf16": True,
    }
    (trial,) = space.named([settings])
    for override in trial.overrides(TASK):
        key, _, text = override.partition("=")
        assert read_value(text, space._type(key, TASK), key) == settings[key]
