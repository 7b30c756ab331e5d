"""Text out of models made here: which one is taken, what its settings become, what is refused."""

import io
import json
import logging
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
from made_runs import MANIFEST
from prompts import POSITIONS, refused
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import (
    BertForMaskedLM,
    GPT2LMHeadModel,
)
from typer.testing import Result

from llmkit.inference import generate
from llmkit.runs import checkpoint

PROMPT = "Once upon a time"
END = "<|endoftext|>"
# What writing needs none of; scipy is imported by transformers itself, where it is installed.
HEAVY = ("transformers.trainer", "datasets", "peft", "pandas", "sklearn", "evaluate", "bitsandbytes")


def finished(models: Path, name: str, task: str, when: float, model: str = "gpt2") -> Path:
    run = models / "runs" / name
    shutil.copytree(models / model, run)
    (run / "run.json").write_text(json.dumps({"status": "finished", "task": task, "finished": when}))
    return run


def test_the_newest_finished_causal_run_is_taken(models: Path, llmkit: Callable[..., Result]) -> None:
    finished(models, "newer", "causal-lm", 2.0)
    finished(models, "older", "causal-lm", 1.0)
    finished(models, "masked", "masked-lm", 3.0, model="bert")
    (models / "runs/going").mkdir()
    (models / "runs/going/run.json").write_text('{"status": "running", "task": "causal-lm", "finished": 4.0}')
    result = llmkit("generate", PROMPT, "max_new_tokens=3")
    assert result.stderr == "model: runs/newer (the newest finished run)\n"
    assert result.stdout.startswith(PROMPT)


def test_without_a_run_and_a_network_the_error_says_how_to_make_one(
    models: Path, llmkit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = llmkit("generate", PROMPT)
    assert result.exit_code == 2
    assert "model: openai-community/gpt2 (no finished run under runs/)" in result.stderr
    assert "three minutes, with no network: llmkit pretrain recipes/tiny/gpt2.toml" in result.stderr


def test_an_unfinished_run_names_its_checkpoint(models: Path, llmkit: Callable[..., Result]) -> None:
    run = models / "runs/half"
    shutil.copytree(models / "gpt2", run / "checkpoint-5")
    (run / "run.json").write_text('{"status": "running", "task": "causal-lm", "id": "half"}')
    assert "use --resume" in refused(llmkit("generate", PROMPT, "--model", "runs/half")).replace(
        "finish it with", "use"
    )
    draft = (run / "checkpoint-5").rename(run / ".draft-checkpoint-5")
    checkpoint.seal(draft, {**MANIFEST, "run": "half", "step": 5})
    said = refused(llmkit("generate", PROMPT, "--model", "runs/half"))
    assert "not finished" in said and "use its last checkpoint: runs/half/checkpoint-5" in said
    assert llmkit("generate", PROMPT, "max_new_tokens=2", "--model", "runs/half/checkpoint-5").exit_code == 0


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("bert", "llmkit predict bert"),
        ("t5", "(T5ForConditionalGeneration) is not a causal language model"),
        ("runs/none", "there is no model at `runs/none`"),
        ("a/b/c", "there is no model at `a/b/c`"),
        ("gpt2/config.json", "is a file"),
        ("empty", "the model `empty` could not be loaded"),
    ],
)
def test_what_does_not_generate_is_refused(models: Path, llmkit: Callable[..., Result], model: str, said: str) -> None:
    (models / "empty").mkdir()
    assert said in refused(llmkit("generate", PROMPT, "--model", model))


def test_models_that_write_and_models_that_predict_point_at_one_another(
    models: Path, llmkit: Callable[..., Result]
) -> None:
    for name, task in (("gpt2", "causal-lm"), ("bert", "masked-lm")):
        shutil.copytree(models / name, models / "runs" / f"own-{name}")
        record = {"status": "finished", "task": task, "finished": 1e12}
        (models / "runs" / f"own-{name}" / "run.json").write_text(json.dumps(record))
    said = refused(llmkit("generate", PROMPT, "--model", "t5"))
    assert 'llmkit predict t5 "..."; to generate, use `runs/own-gpt2`: --model runs/own-gpt2' in said
    said = refused(llmkit("predict", "runs/own-gpt2", PROMPT))
    assert (
        "llmkit generate --model runs/own-gpt2; to predict, use the run `runs/own-bert`: llmkit predict runs/own-bert"
        in said
    )


def test_weights_that_do_not_fit_are_refused(models: Path, llmkit: Callable[..., Result]) -> None:
    weights = models / "gpt2/model.safetensors"
    whole = load_file(weights)
    save_file({key: value for key, value in whole.items() if ".h.1." not in key}, weights, {"format": "pt"})
    assert "12 tensors" in refused(llmkit("generate", PROMPT, "--model", "gpt2"))
    save_file({**whole, "transformer.wpe.weight": torch.zeros(8, 32)}, weights, {"format": "pt"})
    assert "such as transformer.wpe.weight" in refused(llmkit("generate", PROMPT, "--model", "gpt2"))
    weights.write_bytes(weights.read_bytes()[:-100])
    said = refused(llmkit("generate", PROMPT, "--model", "gpt2"))
    assert "could not be loaded: model.safetensors: Error while deserializing" in said


def test_a_model_without_a_tokenizer_is_refused(models: Path, llmkit: Callable[..., Result]) -> None:
    for file in models.glob("gpt2/tok*"):
        file.unlink()
    assert "`gpt2` has no tokenizer" in refused(llmkit("generate", PROMPT, "--model", "gpt2"))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # peft mends it for GPT-2's Conv1D and says so
def test_an_adapter_is_laid_over_its_base(models: Path, llmkit: Callable[..., Result]) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    base = GPT2LMHeadModel.from_pretrained("gpt2")
    get_peft_model(base, LoraConfig(r=4, init_lora_weights=False, lora_alpha=64)).save_pretrained("adapter")
    words = ("generate", PROMPT, "do_sample=false", "max_new_tokens=8", "--model")
    adapted = llmkit(*words, "adapter")
    assert adapted.exit_code == 0
    assert adapted.stdout != llmkit(*words, "gpt2").stdout
    get_peft_model(BertForMaskedLM.from_pretrained("bert"), LoraConfig(target_modules=["query"])).save_pretrained("b")
    assert "masked language model" in refused(llmkit("generate", PROMPT, "--model", "b"))


def test_stdout_holds_the_text_alone_and_a_seed_repeats_it(models: Path, llmkit: Callable[..., Result]) -> None:
    def text(seed: str) -> str:
        result = llmkit("generate", PROMPT, "max_new_tokens=12", "--model", "gpt2", "--seed", seed)
        assert (result.exit_code, result.stderr) == (0, "")
        return result.stdout

    first = text("1")
    assert first.startswith(PROMPT) and END not in first
    assert text("1") == first
    assert text("2") != first


def test_settings_reach_the_model(models: Path, llmkit: Callable[..., Result]) -> None:
    def text(*words: str, fails: bool = False) -> str:
        result = llmkit("generate", PROMPT, *words, "--model", "gpt2", "--seed", "0")
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


def test_a_key_that_is_not_there_and_a_wrong_type(models: Path, llmkit: Callable[..., Result]) -> None:
    result = llmkit("generate", PROMPT, "max_new_tokns=4", "temperature=hot", "--model", "gpt2")
    assert result.exit_code == 2
    assert "did you mean `max_new_tokens`?" in result.stderr
    assert "temperature: must be a number" in result.stderr


def test_prompts_at_the_edge(models: Path, llmkit: Callable[..., Result]) -> None:
    long = "x" * POSITIONS
    assert f"{POSITIONS} tokens, but the model has {POSITIONS} positions" in refused(
        llmkit("generate", long, "--model", "gpt2")
    )
    result = llmkit("generate", long[2:], "max_new_tokens=50", "--model", "gpt2")
    assert result.stderr == f"note: at most 2 new tokens: the prompt takes {POSITIONS - 2} of {POSITIONS} positions\n"
    assert llmkit("generate", long[2:], "--model", "gpt2").stderr == ""  # not asked for more: nothing to say
    assert llmkit("generate", "", "max_new_tokens=3", "--model", "gpt2").stdout.strip() != ""
    said = refused(llmkit("generate", "max_new_tokens=3", "--model", "gpt2"))
    assert 'llmkit generate "Once upon a time" max_new_tokens=3' in said
    assert "not UTF-8" in refused(llmkit("generate", "a\udcff", "--model", "gpt2"))


def test_the_prompt_from_stdin(models: Path, llmkit: Callable[..., Result]) -> None:
    words = ("generate", "-", "max_new_tokens=2", "--model", "gpt2")
    assert llmkit(*words, stdin="a cat\n").stdout.startswith("a cat")
    assert "stdin: byte 2 is not UTF-8" in refused(llmkit(*words, stdin=b"ab\xff"))


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


def test_greedy_search_is_silent_about_the_models_way_of_sampling(made: Path) -> None:
    model, tokenizer = GPT2LMHeadModel.from_pretrained(made / "gpt2"), byte_tokenizer()
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    upstream = logging.getLogger("transformers")
    own = model.generation_config
    own.do_sample, own.temperature, own.top_p, own.top_k = True, 0.7, 0.9, 20
    upstream.addHandler(handler)
    try:
        config = generate.choose_settings(model, tokenizer, {"do_sample": False, "max_new_tokens": 4})
        model.generate(torch.tensor([[5, 6]]), generation_config=config)
    finally:
        upstream.removeHandler(handler)
    assert not config.do_sample
    assert "generation flags" not in said.getvalue()


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


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")
def test_a_terminal_gets_the_text_as_it_comes(models: Path, llmkit: Callable[..., Result]) -> None:
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


def test_guesses_change_nothing(models: Path, llmkit: Callable[..., Result]) -> None:
    Path("rows.txt").write_text("cat cat cat cat\nA cat\n")
    words = ("do_sample=false", "max_new_tokens=12", "--model", "gpt2")
    shutil.copytree("gpt2", "draft")
    weights = load_file("draft/model.safetensors")
    save_file({key: value * 1.1 for key, value in weights.items()}, "draft/model.safetensors", {"format": "pt"})
    for more in ("prompt_lookup_num_tokens=4", "assistant_model=draft"):
        for what in (("generate", "cat cat cat cat"), ("generate", "--input", "rows.txt")):
            plain, guessed = llmkit(*what, *words), llmkit(*what, more, *words)
            assert (guessed.exit_code, guessed.stdout) == (0, plain.stdout)
            assert ("one by one" in guessed.stderr) == ("--input" in what)
    assert "there is no model at `runs/none`" in refused(
        llmkit("generate", "A", "assistant_model=runs/none", "--model", "gpt2")
    )
    tokenizer = json.loads(Path("draft/tokenizer.json").read_text())
    words_of = tokenizer["model"]["vocab"]
    words_of["a"], words_of["b"] = words_of["b"], words_of["a"]
    Path("draft/tokenizer.json").write_text(json.dumps(tokenizer))
    assert "has a different vocabulary from" in refused(
        llmkit("generate", "A", "assistant_model=draft", "--model", "gpt2")
    )
