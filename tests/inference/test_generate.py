"""Text out of models made here: which one is taken, what its settings become, what is refused."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)
from typer.testing import Result

from llmkit.inference import batch, generate, prefill, rows_io
from llmkit.runs import checkpoint

POSITIONS = 64
PROMPT = "Once upon a time"
END = "<|endoftext|>"
# What writing needs none of; scipy is imported by transformers itself, where it is installed.
HEAVY = ("transformers.trainer", "datasets", "peft", "pandas", "sklearn", "evaluate", "bitsandbytes")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with a GPT-2, a BERT and a T5 of two layers and less, not trained."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    size = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=POSITIONS, **size)).save_pretrained(
        folder / "gpt2"
    )
    bert = BertConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=32)
    BertForMaskedLM(bert).save_pretrained(folder / "bert")
    T5ForConditionalGeneration(T5Config(num_layers=1, d_model=32, d_kv=16, d_ff=32, num_heads=2)).save_pretrained(
        folder / "t5"
    )
    for name in ("gpt2", "bert", "t5"):
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that holds copies of the models."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def finished(place: Path, name: str, task: str, when: float, model: str = "gpt2") -> Path:
    run = place / "runs" / name
    shutil.copytree(place / model, run)
    (run / "run.json").write_text(json.dumps({"status": "finished", "task": task, "finished": when}))
    return run


def refused(result: Result) -> str:
    """What a refusal says: an error, a hint, exit code 2, and nothing on stdout."""
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and "\nhint: " in result.stderr
    return result.stderr


# ---- which model ---------------------------------------------------------------------------------------------------


def test_the_newest_finished_causal_run_is_taken(place: Path, llmkit: Callable[..., Result]) -> None:
    finished(place, "newer", "causal-lm", 2.0)
    finished(place, "older", "causal-lm", 1.0)
    finished(place, "masked", "masked-lm", 3.0, model="bert")
    (place / "runs/going").mkdir()
    (place / "runs/going/run.json").write_text('{"status": "running", "task": "causal-lm", "finished": 4.0}')
    result = llmkit("generate", PROMPT, "max_new_tokens=3")
    assert result.stderr == "model: runs/newer (the newest finished run)\n"
    assert result.stdout.startswith(PROMPT)


def test_without_a_run_and_a_network_the_error_says_how_to_make_one(
    place: Path, llmkit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = llmkit("generate", PROMPT)
    assert result.exit_code == 2
    assert "model: openai-community/gpt2 (no finished run under runs/)" in result.stderr
    assert "three minutes, with no network: llmkit pretrain recipes/tiny/gpt2.toml" in result.stderr


def test_an_unfinished_run_names_its_checkpoint(place: Path, llmkit: Callable[..., Result]) -> None:
    run = place / "runs/half"
    shutil.copytree(place / "gpt2", run / "checkpoint-5")
    (run / "run.json").write_text('{"status": "running", "task": "causal-lm", "id": "half"}')
    assert "use --resume" in refused(llmkit("generate", PROMPT, "--model", "runs/half")).replace(
        "finish it with", "use"
    )
    draft = (run / "checkpoint-5").rename(run / ".draft-checkpoint-5")
    checkpoint.seal(draft, {"run": "half", "step": 5})
    message = refused(llmkit("generate", PROMPT, "--model", "runs/half"))
    assert "not finished" in message and "use its last checkpoint: runs/half/checkpoint-5" in message
    assert llmkit("generate", PROMPT, "max_new_tokens=2", "--model", "runs/half/checkpoint-5").exit_code == 0


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("bert", "llmkit predict bert"),
        ("t5", "(T5ForConditionalGeneration) is no causal language model"),
        ("runs/none", "there is no model at `runs/none`"),
        ("a/b/c", "there is no model at `a/b/c`"),
        ("gpt2/config.json", "is a file"),
        ("empty", "the model `empty` could not be loaded"),
    ],
)
def test_what_does_not_generate_is_refused(place: Path, llmkit: Callable[..., Result], model: str, said: str) -> None:
    (place / "empty").mkdir()
    assert said in refused(llmkit("generate", PROMPT, "--model", model))


def test_weights_that_do_not_fit_are_refused(place: Path, llmkit: Callable[..., Result]) -> None:
    weights = place / "gpt2/model.safetensors"
    whole = load_file(weights)
    save_file({key: value for key, value in whole.items() if ".h.1." not in key}, weights, {"format": "pt"})
    assert "12 tensors" in refused(llmkit("generate", PROMPT, "--model", "gpt2"))
    save_file({**whole, "transformer.wpe.weight": torch.zeros(8, 32)}, weights, {"format": "pt"})
    assert "such as transformer.wpe.weight" in refused(llmkit("generate", PROMPT, "--model", "gpt2"))
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "could not be loaded: Error while deserializing" in refused(llmkit("generate", PROMPT, "--model", "gpt2"))


def test_a_model_without_a_tokenizer_is_refused(place: Path, llmkit: Callable[..., Result]) -> None:
    for file in place.glob("gpt2/tok*"):
        file.unlink()
    assert "`gpt2` has no tokenizer" in refused(llmkit("generate", PROMPT, "--model", "gpt2"))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # peft mends it for GPT-2's Conv1D and says so
def test_an_adapter_is_laid_over_its_base(place: Path, llmkit: Callable[..., Result]) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    base = GPT2LMHeadModel.from_pretrained("gpt2")
    get_peft_model(base, LoraConfig(r=4, init_lora_weights=False, lora_alpha=64)).save_pretrained("adapter")
    argv = ("generate", PROMPT, "do_sample=false", "max_new_tokens=8", "--model")
    adapted = llmkit(*argv, "adapter")
    assert adapted.exit_code == 0
    assert adapted.stdout != llmkit(*argv, "gpt2").stdout
    get_peft_model(BertForMaskedLM.from_pretrained("bert"), LoraConfig(target_modules=["query"])).save_pretrained("b")
    assert "masked language model" in refused(llmkit("generate", PROMPT, "--model", "b"))


# ---- what is written -----------------------------------------------------------------------------------------------


def test_stdout_holds_the_text_alone_and_a_seed_repeats_it(place: Path, llmkit: Callable[..., Result]) -> None:
    def text(seed: str) -> str:
        result = llmkit("generate", PROMPT, "max_new_tokens=12", "--model", "gpt2", "--seed", seed)
        assert (result.exit_code, result.stderr) == (0, "")
        return result.stdout

    first = text("1")
    assert first.startswith(PROMPT) and END not in first
    assert text("1") == first
    assert text("2") != first


def test_settings_reach_the_model(place: Path, llmkit: Callable[..., Result]) -> None:
    def text(*argv: str, fails: bool = False) -> str:
        result = llmkit("generate", PROMPT, *argv, "--model", "gpt2", "--seed", "0")
        return refused(result) if fails else result.stdout + result.stderr

    assert text("num_return_sequences=3", "max_new_tokens=4").count("\n---\n") == 2
    assert text("do_sample=false", "max_new_tokens=4") == text("do_sample=false", "max_new_tokens=4")
    assert text("num_beams=2", "max_new_tokens=4") == text("num_beams=2", "max_new_tokens=4", "do_sample=false")
    stopped = text('stop_strings=["a", "e"]', "max_new_tokens=40").removeprefix(PROMPT).rstrip("\n")
    assert {"a", "e"} & set(stopped[-4:]) and not {"a", "e"} & set(stopped[:-4])  # a token may go on behind it
    assert "`max_new_tokens` must be greater than 0" in text("max_new_tokens=0", fails=True)
    assert "strictly positive" in text("temperature=0", fails=True)
    assert "num_return_sequences" in text("num_return_sequences=2", "do_sample=false", fails=True)
    assert "Unfeasible length" in text("min_new_tokens=9", "max_new_tokens=5", fails=True)
    assert "not finite" in text("temperature=1e-40", fails=True)


def test_a_key_that_is_not_there_and_a_wrong_type(place: Path, llmkit: Callable[..., Result]) -> None:
    result = llmkit("generate", PROMPT, "max_new_tokns=4", "temperature=hot", "--model", "gpt2")
    assert result.exit_code == 2
    assert "did you mean `max_new_tokens`?" in result.stderr
    assert "temperature: must be a number" in result.stderr


def test_prompts_at_the_edge(place: Path, llmkit: Callable[..., Result]) -> None:
    long = "x" * POSITIONS
    assert f"{POSITIONS} tokens and the model {POSITIONS} positions" in refused(
        llmkit("generate", long, "--model", "gpt2")
    )
    result = llmkit("generate", long[2:], "max_new_tokens=50", "--model", "gpt2")
    assert result.stderr == f"note: 2 new tokens at most: the prompt has {POSITIONS - 2} of {POSITIONS} positions\n"
    assert llmkit("generate", long[2:], "--model", "gpt2").stderr == ""  # not asked for more: nothing to say
    assert llmkit("generate", "", "max_new_tokens=3", "--model", "gpt2").stdout.strip() != ""
    message = refused(llmkit("generate", "max_new_tokens=3", "--model", "gpt2"))
    assert 'llmkit generate "Once upon a time" max_new_tokens=3' in message
    assert "not UTF-8" in refused(llmkit("generate", "a\udcff", "--model", "gpt2"))


def test_the_prompt_from_stdin(place: Path, llmkit: Callable[..., Result]) -> None:
    argv = ("generate", "-", "max_new_tokens=2", "--model", "gpt2")
    assert llmkit(*argv, stdin="a cat\n").stdout.startswith("a cat")
    assert "stdin: byte 2 is not UTF-8" in refused(llmkit(*argv, stdin=b"ab\xff"))


# ---- the pieces ----------------------------------------------------------------------------------------------------


def test_lengths_keep_what_was_asked(made: Path) -> None:
    model, tokenizer = GPT2LMHeadModel.from_pretrained(made / "gpt2"), byte_tokenizer()

    def lengths(**options: Any) -> tuple[int | None, int | None]:
        config = generate.generation_config(model, tokenizer, options, 10)
        return config.max_new_tokens, config.max_length

    assert lengths(max_length=20) == (None, 20)
    assert lengths(max_length=1000) == (POSITIONS - 10, None)
    assert lengths() == (POSITIONS - 10, None)
    model.generation_config.max_length = 30
    assert lengths() == (None, 30)
    assert lengths(max_new_tokens=5) == (5, None)


def test_the_models_own_way_of_sampling_wins_over_llmkits(made: Path) -> None:
    model, tokenizer = GPT2LMHeadModel.from_pretrained(made / "gpt2"), byte_tokenizer()

    def sampling(**options: Any) -> tuple[Any, ...]:
        config = generate.generation_config(model, tokenizer, options, 10)
        return config.do_sample, config.temperature, config.top_p

    assert sampling() == (True, 0.8, 0.95)
    assert sampling(temperature=0.5) == (True, 0.5, 0.95)
    assert sampling(do_sample=False) == (False, None, None)
    model.generation_config.do_sample, model.generation_config.temperature = True, 0.2
    assert sampling() == (True, 0.2, None)


def test_a_tokenizer_that_begins_texts_begins_the_prompt() -> None:
    tokenizer = byte_tokenizer()
    plain = tokenizer(PROMPT)["input_ids"]
    assert generate.encode(PROMPT, tokenizer) == plain
    assert generate.encode("", tokenizer) == [0]
    tokenizer.bos_token = "A"
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"A $A {END}", special_tokens=[("A", begin), (END, end)]
    )
    assert generate.encode(PROMPT, tokenizer) == [begin, *plain]
    assert generate.encode("", tokenizer) == [begin]


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")
def test_a_terminal_gets_the_text_as_it_comes(place: Path, llmkit: Callable[..., Result]) -> None:
    """In a process of its own, which also shows that no training code is loaded."""
    import pty

    code = f"""
import sys
from llmkit.inference import generate
pieces, write = [], sys.stdout.write
sys.stdout.write = lambda text: (pieces.append(text), write(text))[1]
generate.generate({PROMPT!r}, "gpt2", {{"max_new_tokens": 12}}, 1)
heavy = [name for name in {HEAVY!r} if name in sys.modules]
print(next(filter(None, pieces)).strip() in {PROMPT!r}, heavy, file=sys.stderr)  # before there is more
"""
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", code], stdout=theirs, stderr=subprocess.PIPE, check=True)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode().replace("\r\n", "\n")
    os.close(ours)
    assert done.stderr.decode() == "True []\n"
    assert shown == llmkit("generate", PROMPT, "max_new_tokens=12", "--model", "gpt2", "--seed", "1").stdout


# ---- a file of prompts, interrupted ----------------------------------------------------------------------------------

FILE = ("generate", "max_new_tokens=6", "--model", "gpt2", "--input", "rows.txt", "--output", "said.jsonl")


@pytest.fixture
def rows(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten prompts of many lengths, in chunks of six and batches of few."""
    monkeypatch.setattr(rows_io, "CHUNK", 6)
    monkeypatch.setattr(batch, "BUDGET", {"cpu": 40, "cuda": 40})
    Path("rows.txt").write_text("".join(f"{'cat ' * (n * 7 % 5)}{n}\n" for n in range(10)))
    return place


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int, problem: BaseException) -> None:
    """Let the generation of a batch fail once `after` batches are done."""
    write, count = generate.write, iter(range(after))

    def fail(*argv: Any, **more: Any) -> Any:
        if next(count, None) is None:
            raise problem
        return write(*argv, **more)

    monkeypatch.setattr(generate, "write", fail)


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("torn", ["", '[[3, {"pro'])
def test_an_interrupted_file_goes_on_to_the_same_bytes(
    rows: Path, llmkit: Callable[..., Result], after: int, torn: str
) -> None:
    assert llmkit(*FILE, "--seed", "3").exit_code == 0
    whole = Path("said.jsonl").read_bytes()
    Path("said.jsonl").unlink()
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, after, KeyboardInterrupt())
        stopped = llmkit(*FILE, "--seed", "3")
    assert stopped.exit_code == 130 and "the same command goes on with it" in stopped.stderr
    assert not list(rows.glob("*said.jsonl")) and not list(rows.glob("*.lock"))
    with Path("said.jsonl.partial").open("a") as stream:  # as kill -9 or a full disk leaves it
        stream.write(torn)
    again = llmkit(*FILE)  # the seed is known
    assert again.exit_code == 0 and " of 10 rows are in `said.jsonl.partial`: going on" in again.stderr
    assert Path("said.jsonl").read_bytes() == whole
    assert not list(rows.glob("*said.jsonl.*"))


def test_what_another_command_left_is_refused_and_kept(
    rows: Path, llmkit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, 2, KeyboardInterrupt())
        llmkit(*FILE, "--seed", "3")
    left = Path("said.jsonl.partial").read_bytes()
    message = refused(llmkit(*FILE, "top_k=4", "--seed", "4"))
    assert "rows of another command" in message and "settings was" in message and "seed was 3 and is 4" in message
    Path("rows.txt").write_text("other\n")
    assert "input was" in refused(llmkit(*FILE))
    assert Path("said.jsonl.partial").read_bytes() == left


def test_a_full_disk_keeps_what_is_done(
    rows: Path, llmkit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = iter(range(2))

    def full(_: int) -> None:
        if next(synced, None) is None:
            raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "No space left on device" in refused(llmkit(*FILE, "do_sample=false"))
    assert llmkit(*FILE, "do_sample=false").exit_code == 0
    there = Path("said.jsonl").read_text()
    assert llmkit(*FILE[:-2], "do_sample=false").stdout == there


def test_the_last_row_is_read_before_the_first_is_written(rows: Path, llmkit: Callable[..., Result]) -> None:
    with Path("rows.txt").open("a") as stream:
        stream.write("x" * POSITIONS)
    assert "`rows.txt`, line 11: the prompt has" in refused(llmkit(*FILE))
    assert not list(rows.glob("*said.jsonl*"))


@pytest.mark.parametrize("how", ["do_sample=false", "top_k=20"])
def test_a_file_says_the_same_however_its_prompts_are_read(
    how: str, rows: Path, llmkit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "BUDGET", {"cpu": 4000, "cuda": 4000})
    argv = (*FILE[:-2], how, "--seed", "5")
    read, caches = prefill.read, []
    monkeypatch.setattr(prefill, "read", lambda *given: caches.append(read(*given)) or caches[-1])
    fast = llmkit(*argv).stdout
    assert any(cache is not None for cache in caches)
    monkeypatch.setattr(prefill, "read", lambda *given: None)
    assert llmkit(*argv).stdout == fast


def test_batches_hold_no_more_than_the_budget() -> None:
    found = {0: [1] * 9, 1: [1] * 2, 2: [1] * 3, 3: [1] * 4, 4: [1] * 30}
    allowed = {0: 6, 1: 6, 2: 6, 3: 6, 4: 2}
    assert list(batch._batched(found, allowed, 20)) == [[4], [1, 2], [3], [0]]
    assert list(batch._batched(found, allowed, 1000)) == [[4], [1, 2, 3, 0]]


def test_where_a_gpu_has_no_memory_for_all_rows_they_are_halved(
    rows: Path, llmkit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "BUDGET", {"cpu": 4000, "cuda": 4000})
    whole = llmkit(*FILE[:-2], "do_sample=false").stdout
    write = generate.write

    def small(session: Any, prompts: Any, config: Any, **options: Any) -> Any:
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return write(session, prompts, config, **options)

    monkeypatch.setattr(generate, "write", small)
    assert llmkit(*FILE[:-2], "do_sample=false").stdout == whole


# ---- guesses that are checked ---------------------------------------------------------------------------------------


def test_guesses_change_nothing(place: Path, llmkit: Callable[..., Result]) -> None:
    Path("rows.txt").write_text("cat cat cat cat\nA cat\n")
    argv = ("do_sample=false", "max_new_tokens=12", "--model", "gpt2")
    shutil.copytree("gpt2", "draft")
    weights = load_file("draft/model.safetensors")
    save_file({key: value * 1.1 for key, value in weights.items()}, "draft/model.safetensors", {"format": "pt"})
    for more in ("prompt_lookup_num_tokens=4", "assistant_model=draft"):
        for what in (("generate", "cat cat cat cat"), ("generate", "--input", "rows.txt")):
            plain, guessed = llmkit(*what, *argv), llmkit(*what, more, *argv)
            assert (guessed.exit_code, guessed.stdout) == (0, plain.stdout)
            assert ("one by one" in guessed.stderr) == ("--input" in what)
    assert "there is no model at `runs/none`" in refused(
        llmkit("generate", "A", "assistant_model=runs/none", "--model", "gpt2")
    )
    tokenizer = json.loads(Path("draft/tokenizer.json").read_text())
    words_of = tokenizer["model"]["vocab"]
    words_of["a"], words_of["b"] = words_of["b"], words_of["a"]
    Path("draft/tokenizer.json").write_text(json.dumps(tokenizer))
    assert "has other words than" in refused(llmkit("generate", "A", "assistant_model=draft", "--model", "gpt2"))
