"""Recipes that no one writes by hand: nested thousands deep, numbers of thousands of digits, thousands of mistakes."""

import os
import time
import tomllib

import pytest
from recipe_texts import PLAIN, problems

from llmkit import recipe
from llmkit.errors import UserError
from llmkit.recipe.data_tables import Origin
from llmkit.recipe.toml import DEEPEST, is_key, parse

DEEP = f"arrays or tables are nested more than {DEEPEST} deep"
WIDE = "an integer has more than 64 bits"
REFUSED = {
    "x = " + "[" * 5000 + "]" * 5000: DEEP,
    "x = " + "{a = " * 100 + "1" + "}" * 100: DEEP,
    ".".join("a" * 5000) + " = 1": DEEP,
    "x = " + "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1): DEEP,
    "x = " + "9" * 5000: WIDE,
    "x = 0x" + "f" * 5000: WIDE,
    "x = [1, { y = 9223372036854775808 }]": WIDE,
}


@pytest.mark.parametrize(("text", "message"), REFUSED.items(), ids=[text[:30] for text in REFUSED])
def test_toml_out_of_bounds_is_no_toml(text, message, write):
    with pytest.raises(tomllib.TOMLDecodeError, match=message):
        parse(text)
    path = write(f"{PLAIN}[trainer]\n{text}\n")
    with pytest.raises(UserError, match=f"`{path}`: not TOML: {message}"):
        recipe.load(path)


def test_what_is_within_bounds_is_read():
    depth = DEEPEST - 1
    assert parse("x = " + "[" * depth + "]" * depth)
    assert parse("x = [9223372036854775807, -9223372036854775808]")["x"][0] == 2**63 - 1


def test_so_are_overrides_and_settings_of_generation(write):
    for value in ("[" * 5000 + "]" * 5000, "9" * 5000, "0x" + "f" * 5000):
        assert len(problems(write(PLAIN), f"trainer.max_steps={value}")) == 1
        with pytest.raises(UserError):
            recipe.generation_options([f"max_new_tokens={value}"])


@pytest.mark.parametrize("text", ["", "é", "a.", ".", "a b", '"', "a..b", "a=1"])
def test_what_is_no_key(text):
    assert not is_key(text)
    assert is_key('a."b c"')


@pytest.mark.parametrize(
    "lines",
    [
        "[trainer]\n" + "".join(f"lerning_rate_{n} = 1\n" for n in range(20_000)),
        "".join(f"[trainr{n}]\nx = 1\n" for n in range(20_000)),
        "[model.config]\nmodel_type = 'gpt2'\n[lora]\n" + "".join(f"rank{n} = 1\n" for n in range(20_000)),
    ],
    ids=["keys", "tables", "of peft"],
)
def test_twenty_thousand_mistakes_are_told_within_two_seconds(lines, write):
    path = write('task = "causal-lm"\n' + lines)
    begun = time.process_time()
    with pytest.raises(UserError) as caught:
        recipe.load(path)
    assert time.process_time() - begun < 2
    assert len(caught.value.details) == 101
    assert caught.value.details[-1].startswith("and 19,9")


def test_a_thousand_settings_on_the_command_line_are_too_many(write):
    with pytest.raises(UserError, match="there are 1,001 settings"):
        recipe.load(write(PLAIN), [f"trainer.x{n}=1" for n in range(1001)])
    with pytest.raises(UserError) as caught:
        recipe.load(write(PLAIN), [f"trainer.x{n}=1" for n in range(200)])
    assert caught.value.details[100:] == ("and 100 more",)


def test_a_word_of_another_library_that_is_near_itself_is_looked_up_once(write):
    for key in ("data.rank", "trainer.vocab", "lora.metric", "evaluation.temp", "model.sep", "data.patience"):
        assert len(problems(write(PLAIN), f"{key}=1")) == 1


def test_a_pipe_is_no_recipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/null"):
        with pytest.raises(UserError, match="is a pipe or a device") as caught:
            recipe.load(path)
        assert caught.value.hint == "save it to a file first"


def test_an_empty_output_directory_is_none(write):
    with pytest.raises(UserError, match="output_dir: must not be empty"):
        recipe.load(write(PLAIN), output_dir="")
    with pytest.raises(UserError, match="line 1  output_dir: must not be empty"):
        recipe.load(write(f'output_dir = ""\n{PLAIN}'))


@pytest.mark.parametrize(
    "name", [*["rot13", "hex", "punycode", "idna", "base64", "zlib", "undefined", "uu", "aliases"], "\0"]
)
def test_what_is_no_encoding_of_text_files(name):
    with pytest.raises(ValueError, match="is not an encoding"):
        Origin(path="x", encoding=name)


@pytest.mark.parametrize(
    "name", ["utf-8", "utf-16", "utf-16-le", "cp1252", "gb18030", "shift_jis", "iso2022_jp", "cp037"]
)
def test_encodings_of_text_files(name):
    assert Origin(path="x", encoding=name).encoding == name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], 'needs `trainer.eval_strategy = "steps"` or "epoch"'),
        (["eval_strategy=no"], 'needs `trainer.eval_strategy = "steps"` or "epoch"'),
        (["eval_strategy=epoch"], 'set `trainer.save_strategy = "epoch"`'),
        (["eval_strategy=steps", "save_strategy=no"], 'set `trainer.save_strategy = "steps"`'),
        (["eval_strategy=steps", "eval_steps=3", "save_steps=10"], "`trainer.save_steps` (10) to be a multiple"),
        (["eval_strategy=steps", "eval_steps=0.2", "save_steps=0.5"], "`trainer.save_steps` (0.5) to be a multiple"),
        (["eval_strategy=steps", "save_steps=15"], "of `trainer.eval_steps` (10)"),  # llmkit's logging_steps
    ],
)
def test_a_best_checkpoint_that_could_not_be_told(settings, message, write):
    words = ["trainer.load_best_model_at_end=true", *(f"trainer.{word}" for word in settings)]
    (found,) = problems(write(PLAIN), *words)
    assert "trainer.load_best_model_at_end: " in found
    assert message in found


@pytest.mark.parametrize(
    "settings",
    [
        ["eval_strategy=steps", "save_strategy=best", "metric_for_best_model=loss"],
        ["eval_strategy=epoch", "save_strategy=epoch"],
        ["eval_strategy=steps", "eval_steps=0.1", "save_steps=0.3"],
        ["eval_strategy=steps"],
    ],
)
def test_a_best_checkpoint_that_can_be_told(settings, write):
    recipe.load(write(PLAIN), ["trainer.load_best_model_at_end=true", *(f"trainer.{word}" for word in settings)])
