"""How much of a text a tokenizer does not know, and what is said of it."""

import pytest
from conftest import byte_tokenizer

from llmkit.models import unknown_tokens
from llmkit.recipe import load


class Known:
    """A tokenizer as far as it is asked: 0 is unknown, 1 and 2 stand around a text."""

    bos_token_id = eos_token_id = pad_token_id = None
    unk_token, unk_token_id, cls_token_id, sep_token_id = "[UNK]", 0, 1, 2
    all_special_ids = (0, 1, 2)


def test_the_share_is_that_of_the_texts_own_tokens():
    assert unknown_tokens.share(Known(), [[1, 0, 5, 6, 2], [1, 0, 2]]) == 2 / 4
    assert unknown_tokens.share(Known(), [[1, 2]]) == 0
    assert unknown_tokens.share(Known(), []) == 0


def test_nothing_is_measured_where_no_token_is_the_unknown_one():
    tokenizer = Known()
    tokenizer.unk_token_id = None
    assert unknown_tokens.share(tokenizer, [[0, 1]]) is None
    tokenizer.unk_token_id = tokenizer.eos_token_id = 0  # GPT-2
    assert unknown_tokens.share(tokenizer, [[0, 1]]) is None


RECIPE = 'task = "{task}"\n[model]\nname = "base"\n[data]\npath = "rows.csv"\n'


@pytest.mark.parametrize(
    ("task", "named"),
    [
        (
            "text-classification",
            "try a multilingual model as model.name: intfloat/multilingual-e5-small (118M parameters)",
        ),
        ("token-classification", "google-bert/bert-base-multilingual-cased (178M parameters)"),
        ("question-answering", "FacebookAI/xlm-roberta-base (278M parameters)"),
        ("multiple-choice", "FacebookAI/xlm-roberta-base"),
        ("masked-lm", "model.name: google-bert/bert-base-multilingual-cased (178M parameters), FacebookAI"),
        ("seq2seq", "google/mt5-small (300M parameters)"),
        ("chat", "Qwen/Qwen2.5-0.5B-Instruct (494M parameters)"),
    ],
)
def test_the_warning_names_models_that_fit_the_task(task, named, tmp_path):
    (tmp_path / "rows.csv").touch()
    (tmp_path / "recipe.toml").write_text(RECIPE.format(task=task))
    recipe = load(str(tmp_path / "recipe.toml"))
    assert unknown_tokens.warnings(recipe, Known(), {"train": 0.02, "validation": None}) == []
    (said,) = unknown_tokens.warnings(recipe, Known(), {"train": 0.63, "validation": 0.5})
    assert said.startswith("train: 63.0% of the tokens are `[UNK]`: the model cannot see the text behind them; ")
    assert named in said


@pytest.mark.parametrize(("rate", "said"), [("1e-4", True), ("5e-5", False), (None, False)])
def test_models_of_base_size_are_named_with_a_learning_rate_that_fits_them(rate, said, tmp_path):
    (tmp_path / "rows.csv").touch()
    table = "" if rate is None else f"[trainer]\nlearning_rate = {rate}\n"
    (tmp_path / "recipe.toml").write_text(RECIPE.format(task="text-classification") + table)
    (warning,) = unknown_tokens.warnings(load(str(tmp_path / "recipe.toml")), Known(), {"train": 0.63})
    assert warning.endswith("; all but the first with trainer.learning_rate=2e-5") is said


def test_the_warning_names_the_keys_of_a_tokenizer_that_is_trained(tmp_path):
    (tmp_path / "rows.csv").touch()
    text = 'task = "text-classification"\n[model.config]\nmodel_type = "bert"\n[tokenizer]\ntype = "wordpiece"\n'
    (tmp_path / "recipe.toml").write_text(text + '[data]\npath = "rows.csv"\n')
    (said,) = unknown_tokens.warnings(load(str(tmp_path / "recipe.toml")), Known(), {"train": 0.03})
    assert said.endswith("raise tokenizer.vocab_size, or set tokenizer.type = byte-bpe, which covers every character")


@pytest.fixture
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def asked(tokenizer, tmp_path, monkeypatch):
    """`asked(text)`: what is said of the byte-level tokenizer, as if it had pieces of words, and a text."""
    monkeypatch.setattr(unknown_tokens, "BYTES", 0)
    (tmp_path / "rows.csv").touch()
    (tmp_path / "recipe.toml").write_text(RECIPE.format(task="chat"))
    recipe = load(str(tmp_path / "recipe.toml"))
    return lambda text: unknown_tokens.in_pieces(recipe, tokenizer, {"train": tokenizer([text])["input_ids"]})


def test_a_script_that_a_byte_level_tokenizer_never_saw_is_told_by_the_parts_of_characters(asked, tokenizer):
    assert unknown_tokens.share(tokenizer, [[1, 2]]) is None
    (warning,) = asked("房间很干净，服务也好")
    assert warning == (
        "train: 100.0% of the tokens are only part of a character: the model hardly knows this script; "
        "try a multilingual model as model.name: "
        "Qwen/Qwen2.5-0.5B-Instruct (494M parameters), Qwen/Qwen2.5-1.5B-Instruct (1.5B parameters)"
    )
    assert asked("the café said “fine” to all of us, and we said so too") == []
    assert asked("") == []


def test_padding_and_special_tokens_are_not_counted(tokenizer, monkeypatch):
    monkeypatch.setattr(unknown_tokens, "BYTES", 0)
    (han,), special = tokenizer(["房"])["input_ids"], tokenizer.eos_token_id
    ascii_, *_ = tokenizer("x")["input_ids"]
    assert unknown_tokens.share_in_pieces(tokenizer, [[-100, special, ascii_], [*han, ascii_, ascii_]]) == 1 / 2


def test_a_tokenizer_of_bytes_and_one_that_is_trained_on_the_text_are_not_warned_of(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "rows.csv").touch()
    given = 'task = "text-classification"\n[model]\nname = "base"\n[data]\npath = "rows.csv"\n'
    trained = given.replace('name = "base"', 'config.model_type = "bert"\n[tokenizer]\ntype = "byte-bpe"')
    tokens = {"train": tokenizer(["房间很干净"])["input_ids"]}

    def said(text):
        (tmp_path / "recipe.toml").write_text(text)
        return unknown_tokens.in_pieces(load(str(tmp_path / "recipe.toml")), tokenizer, tokens)

    assert said(given) == []
    monkeypatch.setattr(unknown_tokens, "BYTES", 0)
    assert said(given) and said(trained) == []
