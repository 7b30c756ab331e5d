"""What is said holds no secrets: not in a message, not in a path, not in an address."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from llmkit.errors import UserError, say, scrub


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("--token hf_abcdefGHIJ12345 x", "--token *** x"),
        ("model.name=org/hf_small", "model.name=org/hf_small"),
        ("http://me:geheim@proxy:3128/", "http://me:***@proxy:3128/"),
        ("see https://host:443/a@b and c:d@e", "see https://host:443/a@b and c:d@e"),
        ("s3://:pass@bucket, again ftp://u:p@h", "s3://:***@bucket, again ftp://u:***@h"),
        ("nothing to hide", "nothing to hide"),
        ("there is no folder `/home/https:/me:geheim@host/x`", "there is no folder `/home/https:/me:***@host/x`"),
        ("https://me:ge@heim:1@host/x@y", "https://me:***@host/x@y"),
        ("https://ghp_0123456789@github.com/x, ssh://git@host", "https://***@github.com/x, ssh://git@host"),
        ("https://host/a?v=1&X-Amz-Signature=ab12&b=2 c", "https://host/a?v=1&X-Amz-Signature=***&b=2 c"),
        ("`http://host/a?access_token=geheim`", "`http://host/a?access_token=***`"),
        ("is it? token=none, http://host/?page=2", "is it? token=none, http://host/?page=2"),
        ('{"a":"http://h:80","b":"x@y"}', '{"a":"http://h:80","b":"x@y"}'),
    ],
)
def test_what_looks_like_a_secret_is_scrubbed(text: str, left: str) -> None:
    assert scrub(text) == left


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "token"]
)
def test_the_secrets_of_the_environment_are_scrubbed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "s3cr3t/value")
    assert scrub("a s3cr3t/value b s3cr3t/value") == "a *** b ***"


def test_a_long_secret_goes_before_a_short_one_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    monkeypatch.setenv("B_TOKEN", "abcdefghijkl")
    assert scrub("abcdefghijkl abcdefgh") == "*** ***"


def test_other_variables_and_short_words_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "parallelism")
    monkeypatch.setenv("USE_TOKEN", "true")
    monkeypatch.setenv("MONKEY", "chimpanzee")
    assert scrub("parallelism is true, chimpanzee") == "parallelism is true, chimpanzee"


@pytest.mark.parametrize(
    ("variable", "name", "file"),
    [
        ("HF_TOKEN_PATH", "mine", "mine"),
        ("HF_HOME", "home", "home/token"),
        ("XDG_CACHE_HOME", "cache", "cache/huggingface/token"),
    ],
)
def test_the_token_of_a_login_is_scrubbed(
    variable: str, name: str, file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_HOME")
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("my-own-token\n")
    monkeypatch.setenv(variable, str(tmp_path / name))
    assert scrub("it is my-own-token.") == "it is ***."


def test_whatever_is_said_is_scrubbed(capsys: pytest.CaptureFixture[str]) -> None:
    say(*UserError("no `ftp://a:geheim@host`", "is `/home/ftp:/a:geheim@host` one?", ("s3://geheim11@host",)).lines())
    said = capsys.readouterr().err
    assert "geheim" not in said
    assert said.count("***") == 3


def test_an_address_with_a_password_is_refused_and_its_password_not_repeated(
    workplace: Path, llmkit: Callable[..., Result]
) -> None:
    secret = "https://me:geheim@host/x"
    for words in (
        ("pretrain", "causal.toml", f"data.path={secret}"),
        ("pretrain", "causal.toml", f"model.name={secret}"),
        ("pretrain", "causal.toml", "--output-dir", secret),
        ("pretrain", secret),
        ("generate", "Once", "--model", secret),
        ("predict", secret, "Once"),
        ("evaluate", secret),
        ("check", secret),
        ("compare", secret, secret),
        ("report", secret),
        ("data", secret),
        ("runs", secret),
        ("merge", secret, "--output", secret),
        ("recipes", "show", secret),
    ):
        done = llmkit(*words)
        assert done.exit_code == 2, words
        assert "geheim" not in done.output, words
    assert sorted(path.name for path in workplace.iterdir()) == ["causal.toml", "corpus.txt", "masked.toml"]
