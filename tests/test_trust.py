"""What is not trusted: code and pickles that come with a model, names that become paths, and where a token may be."""

import ast
import builtins
import json
import os
import pickle
import pty
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import CAUSAL, ROOT
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from llmkit import accelerate_launch, hub, launch
from llmkit.errors import UserError
from llmkit.inference import generate
from llmkit.models import loading
from llmkit.models import tokenizer as tokenizers
from llmkit.models.config import load_config
from llmkit.models.merge import merge
from llmkit.models.weights import create_model
from llmkit.recipe import load
from llmkit.recipe.schema import Model, Tokenizer
from llmkit.runs import directory as runs
from llmkit.runs import finished

TOKEN = "hf_FAKEfakeFAKEfake0123456789FAKEfake"
CODE = """
from pathlib import Path
Path(__file__).with_name("it-ran").touch()
from transformers import GPT2Config, GPT2LMHeadModel
class OwnConfig(GPT2Config):
    model_type = "own"
class Own(GPT2LMHeadModel):
    config_class = OwnConfig
"""


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The folder of a GPT-2 of one layer."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(1)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 9}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{n}": n for n in range(9)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it, to be spoiled."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture
def with_code(folder):
    """The same with a class of its own, a file of Python beside it."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(CODE)
    return folder


def with_pickle(folder, content=None):
    """The weights as a pickle, as they were or replaced by `content`."""
    weights = folder / "model.safetensors"
    torch.save(load_file(weights) if content is None else content, folder / "pytorch_model.bin")
    weights.unlink()
    return str(folder)


def pretrained(name, **options):
    table = Model(name=name, **options)
    return create_model(table, load_config(table)[0], AutoModelForCausalLM, 0)[0]


def refused(call, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def holding(folder, secret):
    """The files below `folder` with `secret` in them."""
    return [file for file in folder.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]


# ---- code ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "read",
    [
        lambda name: load_config(Model(name=name)),
        lambda name: loading.load_model(name, AutoModelForCausalLM),
        lambda name: generate.load(name, "causal-lm", {}, None),
        finished.task_of,
    ],
)
def test_code_beside_a_model_is_refused_without_a_question(read, with_code, monkeypatch):
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("it asked"))
    began = time.monotonic()
    said = refused(read, str(with_code))
    assert time.monotonic() - began < 2
    assert f"the model `{with_code}` needs the Python code that comes with it" in said
    assert "model.trust_remote_code = true" in said
    assert not list(with_code.rglob("it-ran"))


def test_code_of_a_tokenizer_is_refused_without_a_question(folder, monkeypatch):
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("it asked"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "own"}))
    (folder / "own.py").write_text(CODE)
    said = refused(tokenizers.load, Tokenizer(), Model(name=str(folder)), "causal-lm", None, None)
    assert "Python code that comes with it" in said
    assert not list(folder.rglob("it-ran"))


def test_a_head_that_needs_code_is_refused_in_the_same_words(with_code):
    """The configuration is upstream's, the class is not."""
    config = json.loads((with_code / "config.json").read_text())
    config |= {"model_type": "vit", "auto_map": {"AutoModelForCausalLM": "own.Own"}}
    (with_code / "config.json").write_text(json.dumps(config))
    table = Model(name=str(with_code), init="scratch")
    said = refused(create_model, table, load_config(table)[0], AutoModelForCausalLM, 0)
    assert "Python code that comes with it" in said


def test_code_runs_where_the_recipe_allows_it(with_code):
    for init in ("scratch", "pretrained"):
        assert type(pretrained(str(with_code), trust_remote_code=True, init=init)).__name__ == "Own"


def test_every_loader_is_told_whether_code_may_run():
    """None would ask on stdin for 15 seconds (transformers, dynamic_module_utils.py)."""
    silent = []
    for file in sorted((ROOT / "llmkit").rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            loader = ast.unparse(call.func)
            told = {keyword.arg for keyword in call.keywords}
            told |= {"trust_remote_code"} if "**options" in ast.unparse(call) and file.name == "loading.py" else set()
            loads_code = loader.startswith("Auto") or "model_class" in loader
            if call.func.attr in ("from_pretrained", "from_config") and loads_code and "trust_remote_code" not in told:
                silent.append(f"{file.name}:{call.lineno} {loader}")
    assert silent == []


def test_a_terminal_sees_no_question_and_a_token_is_nowhere(with_code, workplace):
    """In a process of its own, whose stdin is a terminal."""
    leader, follower = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "llmkit",
        "pretrain",
        "causal.toml",
        f"model.name={with_code}",
        "model.init=scratch",
    ]
    environment = {**os.environ, "HF_TOKEN": TOKEN, "HF_HOME": str(workplace / "home")}
    try:
        done = subprocess.run(command, stdin=follower, env=environment, capture_output=True, text=True, timeout=60)
    finally:
        os.close(leader)
        os.close(follower)
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.partition(" ")[0] for line in done.stderr.splitlines()] == ["error:", "hint:"]
    assert "trust_remote_code" in done.stderr
    assert TOKEN not in done.stderr
    assert holding(workplace, TOKEN) == []


# ---- pickles ---------------------------------------------------------------------------------------------------------


class Payload:
    """What a stranger's pickle may hold."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def test_a_pickle_is_read_only_where_the_recipe_allows_it(folder):
    stored = load_file(folder / "model.safetensors")
    name = with_pickle(folder)
    for read in (pretrained, lambda name: loading.load_model(name, AutoModelForCausalLM)):
        said = refused(read, name)
        assert f"the weights of the model `{name}` are a pickle (pytorch_model.bin)" in said
        assert "model.use_safetensors = false" in said
    weights = pretrained(name, use_safetensors=False).state_dict()
    assert all(torch.equal(weights[key], tensor) for key, tensor in stored.items())


def test_of_both_formats_safetensors_is_read(folder, tmp_path):
    torch.save({"weights": Payload(tmp_path / "it-ran")}, folder / "pytorch_model.bin")
    pretrained(str(folder), use_safetensors=False)
    assert not (tmp_path / "it-ran").exists()


def test_a_pickle_that_would_run_code_does_not(folder, tmp_path):
    trace = tmp_path / "it-ran"
    name = with_pickle(folder, {"weights": Payload(trace)})
    with (folder / "pytorch_model.bin").open("rb"), pytest.raises(pickle.UnpicklingError):
        torch.load(folder / "pytorch_model.bin", weights_only=True)
    said = refused(pretrained, name, use_safetensors=False)
    assert "a pickle that holds more than tensors" in said
    assert not trace.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert trace.exists()  # the payload is a real one


def test_the_pickle_of_an_adapter_is_refused(folder, tmp_path):
    model = create_model(
        Model(name=str(folder)),
        load_config(Model(name=str(folder)))[0],
        AutoModelForCausalLM,
        0,
        lora={},
        task_type="CAUSAL_LM",
    )[0]
    model.save_pretrained(tmp_path / "adapter")
    loading.load_model(str(tmp_path / "adapter"), AutoModelForCausalLM)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    torch.save({"weights": Payload(tmp_path / "it-ran")}, tmp_path / "adapter" / "adapter_model.bin")
    for read in (
        lambda name: loading.load_model(name, AutoModelForCausalLM),
        lambda name: merge(name, str(tmp_path / "merged")),
        lambda name: generate.load(name, "causal-lm", {}, None),
    ):
        said = refused(read, str(tmp_path / "adapter"))
        assert "has no adapter_model.safetensors" in said
        assert "is a pickle, which can run code" in said
    assert not (tmp_path / "it-ran").exists()


def test_weights_that_are_not_there_at_all(folder):
    (folder / "model.safetensors").unlink()
    assert 'model.init = "scratch"' in refused(pretrained, str(folder))


# ---- tokens ----------------------------------------------------------------------------------------------------------


def test_a_token_of_the_environment_is_in_no_byte_of_a_run(workplace):
    command = [sys.executable, "-m", "llmkit", "pretrain", "causal.toml"]
    environment = {**os.environ, "HF_TOKEN": TOKEN, "HF_HOME": str(workplace / "home")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (workplace / "runs" / "causal" / "model.safetensors").is_file()
    assert TOKEN not in done.stdout + done.stderr
    assert holding(workplace, TOKEN) == []


def test_a_token_is_in_no_byte_of_a_run_that_fails(workplace, llmkit, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    done = llmkit("pretrain", "causal.toml", "trainer.learning_rate=1e38", "--output-dir", "runs/wild")
    assert done.exit_code == 1
    assert (workplace / "runs" / "wild" / "run.json").is_file()
    assert TOKEN not in done.output
    assert holding(workplace, TOKEN) == []


def test_a_token_is_not_on_the_command_line_of_a_launch(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert TOKEN not in " ".join(accelerate_launch.launch_command(tmp_path, accelerate_launch.Launched(2)))


@pytest.mark.parametrize(
    "words",
    [
        ["finetune", "glue", "--token", TOKEN],
        ["finetune", "glue", f"--hub_token={TOKEN}"],
        ["finetune", "glue", "--lr", "3", f"model.token={TOKEN}"],
        ["finetune", "glue", f"model.nme={TOKEN}"],
        ["finetune", ".", f"model.token={TOKEN}"],
        ["predict", "runs/x", "a", f"--api-key={TOKEN}"],
    ],
)
def test_a_token_on_a_mistaken_command_line_is_not_repeated(words, workplace, llmkit):
    done = llmkit(*words)
    assert done.exit_code == 2
    assert TOKEN not in done.output


@pytest.mark.parametrize(
    "key", ["trainer.hub_token", "trainer.push_to_hub_token", "model.token", "data.token", "token"]
)
def test_a_token_in_a_recipe_is_refused_and_not_repeated(key, workplace, llmkit):
    done = llmkit("pretrain", "causal.toml", f"{key}={TOKEN}")
    assert done.exit_code == 2
    assert key in done.stderr
    assert TOKEN not in done.output
    table, _, name = key.rpartition(".")
    head = f'{name} = "{TOKEN}"\n'
    (workplace / "mine.toml").write_text(
        CAUSAL.replace(f"[{table}]\n", f"[{table}]\n{head}")
        if f"[{table}]\n" in CAUSAL
        else f"{head}{CAUSAL}"
        if not table
        else f"{CAUSAL}[{table}]\n{head}"
    )
    done = llmkit("pretrain", "mine.toml")
    assert done.exit_code == 2
    assert TOKEN not in done.output
    assert holding(workplace, TOKEN) == [workplace / "mine.toml"]


def test_a_password_in_the_address_of_the_hub_is_not_shown(workplace, monkeypatch, llmkit):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://me:geheim@127.0.0.1:9")
    monkeypatch.setattr(hub, "_trouble", "")
    done = llmkit("predict", "org/none", "a text")
    assert done.exit_code == 2
    assert "http://me:***@127.0.0.1:9 cannot be reached" in done.stderr


# ---- names that become paths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stem", ["..", "...", "-", ".hidden", "a b", "-rf", "~", "$HOME", "a;b", "a\nb", "tag..", "ü", "."]
)
def test_the_name_of_a_recipe_file_cannot_lead_out_of_runs(stem, workplace):
    (workplace / f"{stem}.toml").write_text(CAUSAL)
    directory = launch.find_directory(load(str(workplace / f"{stem}.toml")), resume=False)
    assert directory.resolve().parent == workplace / "runs"
    assert runs.is_run(directory)


def test_a_folder_called_like_a_way_out_names_no_run(workplace):
    """A recipe.toml takes the name of its folder."""
    (workplace / "up").mkdir()
    (workplace / "up" / "recipe.toml").write_text(CAUSAL)
    shutil.copy(workplace / "corpus.txt", workplace / "up")
    for path in ("up/recipe.toml", "up/../up/recipe.toml"):
        directory = launch.find_directory(load(path), resume=False)
        assert directory.resolve().parent == workplace / "runs"
        assert directory.name.startswith("up")


@pytest.mark.parametrize("name", ["../../etc", "..", "/etc/passwd", "tiny/../../x", "sst2/../../x"])
def test_a_task_that_is_a_path_is_no_task(name, workplace, llmkit):
    done = llmkit("finetune", "--task", name)
    assert done.exit_code == 2
    assert any(said in done.stderr for said in ("there is no task", "is a file", "is a folder, not a task"))
    assert not (workplace / "runs").exists()


@pytest.mark.parametrize("name", ["../up", "..", "a/b", "/tmp/x", "a\\nb", "", "checkpoint", "."])
def test_the_name_of_one_of_several_tasks_is_a_plain_word(name, workplace, llmkit):
    parts = "".join(
        f'[tasks."{each}"]\ntask = "text-classification"\ndata = {{ path = "rows.csv" }}\n' for each in (name, "good")
    )
    (workplace / "rows.csv").write_text("text,label\na,0\nb,1\n")
    (workplace / "several.toml").write_text(f'task = "multi-task"\n[model]\nname = "org/none"\n{parts}')
    done = llmkit("finetune", "several.toml")
    assert done.exit_code == 2
    assert "its model is saved under this name: use letters, digits, - and _ only" in done.stderr


def test_a_link_in_runs_is_not_written_through(workplace):
    (workplace / "outside").mkdir()
    (workplace / "runs").mkdir()
    (workplace / "runs" / "causal").symlink_to(workplace / "outside")
    (workplace / "runs" / "causal-2").symlink_to(workplace / "nowhere")
    directory = launch.find_directory(load("causal.toml"), resume=False)
    assert directory == Path("runs/causal-3")
    assert list((workplace / "outside").iterdir()) == []
    assert not (workplace / "nowhere").exists()


def test_a_path_that_the_user_named_is_his_own_links_and_all(workplace):
    (workplace / "disk").mkdir()
    (workplace / "runs").symlink_to(workplace / "disk")
    assert launch.find_directory(load("causal.toml"), resume=False) == Path("runs/causal")
    assert runs.is_run(workplace / "disk" / "causal")
    named = load("causal.toml", output_dir="../elsewhere/run")
    assert launch.find_directory(named, resume=False) == Path("../elsewhere/run")
    assert runs.is_run(workplace.parent / "elsewhere" / "run")
