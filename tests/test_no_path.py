"""Words that no path can be, where a path may stand: one error, exit code 2, nothing written."""

import pytest
from conftest import CAUSAL

from llmkit import disk

LONG = "It was a long text, and the model was forgotten. " * 8
NAME = "a" * 300  # without blanks
DEEP = "a/" * 3000 + "b"
CAUSAL_RECIPE = ("pretrain", "causal.toml")
COMMANDS = [
    ("predict", LONG),
    ("predict", LONG, "another"),
    ("predict", "model", "--input", LONG),
    ("predict", "model", "--input", "corpus.txt", "--output", f"{NAME}.jsonl"),
    ("evaluate", LONG),
    ("evaluate", "model", LONG),
    ("evaluate", LONG, "causal.toml"),
    ("generate", "hello", "--model", LONG),
    ("generate", "--input", LONG, "--model", "model"),
    ("merge", LONG, "--output", "merged"),
    ("check", LONG),
    ("runs", LONG),
    ("compare", LONG, "model"),
    ("explain", LONG),
    ("report", LONG),
    ("data", LONG),
    ("data", f"{NAME}*"),
    ("recipes", "show", LONG),
    ("recipes", "copy", "tiny/gpt2", NAME),
    ("pretrain", LONG),
    ("pretrain", "--task", LONG),
    ("finetune", "--task", LONG),
    (*CAUSAL_RECIPE, LONG),
    (*CAUSAL_RECIPE, f"data.path={LONG}"),
    (*CAUSAL_RECIPE, f"data.path={NAME}.txt"),
    (*CAUSAL_RECIPE, f"data.path={NAME}*.txt"),
    (*CAUSAL_RECIPE, f"data.data_files={NAME}.txt"),
    (*CAUSAL_RECIPE, "tokenizer=", "model.config=", f"model.name={LONG}"),
    (*CAUSAL_RECIPE, "tokenizer=", f"tokenizer.name={LONG}"),
    (*CAUSAL_RECIPE, "--output-dir", NAME),
    (*CAUSAL_RECIPE, "--output-dir", NAME, "--resume"),
    (*CAUSAL_RECIPE, "--name", NAME),
    (*CAUSAL_RECIPE, "--accelerate-config", LONG),
    (*CAUSAL_RECIPE, "--dry-run", f"data.path={LONG}"),
]
OF_A_FILE = ('output_dir = "a\\u0000b"\n', '[data]\npath = "a\\u0000b"\n', '[tokenizer]\nname = "a\\u0000b"\n')


def check_refused(done, home, before):
    assert done.exit_code == 2, done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize("words", COMMANDS, ids=[" ".join(words)[:40] for words in COMMANDS])
@pytest.mark.parametrize("deep", [False, True])
def test_a_word_that_is_too_long_for_a_path_is_refused(words, deep, workplace, llmkit, no_network):
    before = sorted(workplace.rglob("*"))
    if deep:
        words = [word.replace(LONG, DEEP).replace(NAME, DEEP) for word in words]
    check_refused(llmkit(*words), workplace, before)


@pytest.mark.parametrize("line", OF_A_FILE)
def test_a_nul_in_a_recipe_is_refused(line, workplace, llmkit, no_network):
    text = CAUSAL.replace("[data]\npath", "[data]\n#") if "[data]" in line else CAUSAL
    if line.startswith("["):
        table = line.partition("\n")[0]
        text = text.replace(f"{table}\n", line, 1).replace(
            'type = "byte-bpe"\nvocab_size = 300\n', "" if "tok" in line else 'type = "byte-bpe"\nvocab_size = 300\n'
        )
    else:
        text = line + text
    (workplace / "causal.toml").write_text(text)
    before = sorted(workplace.rglob("*"))
    check_refused(llmkit(*CAUSAL_RECIPE), workplace, before)


def test_nothing_is_where_no_path_leads(tmp_path):
    (tmp_path / "file").write_text("")
    for word in (LONG, DEEP, "a\0b", "", tmp_path / "file/below", tmp_path / NAME):
        assert not disk.exists(word)
        assert not disk.is_file(word)
        assert not disk.is_dir(word)
    assert disk.exists(tmp_path)
