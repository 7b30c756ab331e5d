"""Fine-tuning from end to end: what is trained and what is not, adapters that plain peft loads, merging, resuming."""

import json
from pathlib import Path

import forks
import pytest
import torch
from conftest import corpus, losses
from safetensors.torch import load_file

from llmkit.speed import length_groups

RECIPE = """
task = "text-classification"
[model]
name = "base"
[data]
path = "rows.csv"
validation_fraction = 0.2
[trainer]
max_steps = 4
per_device_train_batch_size = 8
learning_rate = 1e-2
logging_steps = 1
train_sampling_strategy = "group_by_length"
"""


@pytest.fixture
def place(base, tmp_path, monkeypatch) -> Path:
    (tmp_path / "base").symlink_to(base)
    rows = [f"{line.split(' at ')[0]},{'fox' if 'fox' in line[:8] else 'none'}" for line in corpus(200).splitlines()]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def finetune(llmkit, *words: str, name: str = "run") -> str:
    done = llmkit("finetune", "recipe.toml", *words, "--output-dir", name)
    assert done.exit_code == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("part", "trained"),
    [
        ("head", ("classifier.", "bert.pooler.")),
        ("top-1", ("classifier.", "bert.pooler.", "bert.encoder.layer.1.")),
        ("top-2", ("classifier.", "bert.pooler.", "bert.encoder.layer.")),
        ("all", ("classifier.", "bert.")),
    ],
)
def test_what_is_not_trained_stays_to_the_last_bit_and_all_else_moves(part, trained, place, llmkit):
    said = finetune(llmkit, f"model.train={part}", name="run")
    finetune(llmkit, f"model.train={part}", "trainer.max_steps=1", name="one")  # the schedule starts at 1e-2
    before, after, first = weights(place / "base"), weights(place / "run"), weights(place / "one")
    frozen = [name for name in after if not name.startswith(trained)]
    assert (part == "all") == (frozen == [])
    for name in frozen:
        assert torch.equal(after[name], before[name]), name
    unused = ("bert.embeddings.token_type_embeddings.weight", "bert.embeddings.position_embeddings.weight")
    moved = [name for name in after if name.startswith(trained) and not torch.equal(after[name], first[name])]
    assert set(after) - set(frozen) - set(moved) <= set(unused)
    count = sum(after[name].numel() for name in after if name.startswith(trained))
    record = json.loads((place / "run/run.json").read_text())
    assert record["trainable_parameters"] == count
    assert (f"{count:,} of them trained" in said) == (part != "all")


RELOAD = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
config = AutoConfig.from_pretrained("run/model_config.json")
base = AutoModelForSequenceClassification.from_pretrained("base", config=config)
model = PeftModel.from_pretrained(base, "run").eval()
batch = AutoTokenizer.from_pretrained("run")(sys.argv[1:], padding=True, return_tensors="pt")
with torch.no_grad():
    print(json.dumps([model(**batch).logits.tolist(), config.id2label]))
"""
TEXTS = ("the fox saw 3 of the hens", "the owl met 5 of the cats and dogs")


def test_an_adapter_loads_in_plain_peft_with_identical_logits_and_its_head(place, llmkit):
    before = {file.name: file.read_bytes() for file in (place / "base").iterdir() if file.is_file()}
    finetune(llmkit, "lora.r=4")  # the recipe has no [lora]: this alone makes it an adapter's
    assert {file.name: file.read_bytes() for file in (place / "base").iterdir() if file.is_file()} == before
    saved = load_file(place / "run/adapter_model.safetensors")
    assert not (place / "run/model.safetensors").exists()
    assert {name.split(".")[2] for name in saved if "lora" not in name} == {"bert", "classifier"}  # bert: its pooler
    assert all("lora" in name or "pooler" in name or "classifier" in name for name in saved)
    done = forks.run("-c", RELOAD, *TEXTS)
    assert done.returncode == 0, done.stderr
    logits, names = json.loads(done.stdout)
    assert names == {"0": "fox", "1": "none"}

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from llmkit.models import loading

    ours = loading.load_model("run", AutoModelForSequenceClassification)
    batch = AutoTokenizer.from_pretrained("run")(list(TEXTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(ours(**batch).logits, torch.tensor(logits))
    base = weights(place / "base")
    for name, value in ours.get_base_model().state_dict().items():
        plain = name.replace(".base_layer", "")
        if plain in base and "pooler" not in name:
            assert torch.equal(value, base[plain]), name
    told = json.loads((place / "run/run.json").read_text())["metrics"]["eval_loss"]
    found = json.loads(llmkit("evaluate", "run").stdout)
    assert found["eval_loss"] == pytest.approx(told, rel=1e-6)


def test_a_merged_adapter_says_what_the_adapter_said(place, llmkit):
    finetune(llmkit, "lora.r=4")
    done = llmkit("merge", "run", "--output", "whole")
    assert done.exit_code == 0, done.stderr
    adapter = [json.loads(line) for line in llmkit("predict", "run", *TEXTS).stdout.splitlines()]
    merged = [json.loads(line) for line in llmkit("predict", "whole", *TEXTS).stdout.splitlines()]
    for one, other in zip(adapter, merged, strict=True):
        assert other["label"] == one["label"]
        assert other["score"] == pytest.approx(one["score"], abs=1e-5)
    assert llmkit("merge", "run", "--output", "whole").exit_code == 2
    assert llmkit("merge", "whole", "--output", "again").exit_code == 2


def test_a_run_is_used_when_what_it_was_made_from_is_gone(place, llmkit):
    finetune(llmkit)
    (place / "rows.csv").unlink()
    (place / "base").unlink()
    done = llmkit("predict", "run", *TEXTS)
    assert done.exit_code == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize("words", [(), ("lora.r=4",)], ids=["whole", "adapter"])
def test_resuming_in_the_second_epoch_is_exact(words, place, llmkit):
    steps = ("trainer.max_steps=30", "trainer.save_steps=24", "trainer.learning_rate=1e-3", *words)
    finetune(llmkit, *steps, name="straight")
    finetune(llmkit, *steps, name="broken")
    record = json.loads((place / "broken/run.json").read_text())
    (place / "broken/run.json").write_text(json.dumps({**record, "status": "stopped"}))
    file = "adapter_model.safetensors" if words else "model.safetensors"
    (place / "broken" / file).unlink()
    for folder in (place / "broken").glob("checkpoint-*"):
        if folder.name != "checkpoint-24":
            for inside in folder.iterdir():
                inside.unlink()
            folder.rmdir()
    done = llmkit("finetune", "recipe.toml", *steps, "--output-dir", "broken", "--resume")
    assert done.exit_code == 0, done.stderr
    assert "resuming from broken/checkpoint-24" in done.stderr
    straight, resumed = load_file(place / "straight" / file), load_file(place / "broken" / file)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert losses(place / "broken")[-6:] == losses(place / "straight")[-6:]


def test_a_run_is_not_resumed_with_another_adapter(place, llmkit):
    finetune(llmkit, "trainer.save_steps=2", "lora.r=4")
    record = json.loads((place / "run/run.json").read_text())
    (place / "run/run.json").write_text(json.dumps({**record, "status": "stopped"}))
    done = llmkit("finetune", "recipe.toml", "lora.r=8", "--output-dir", "run", "--resume")
    assert done.exit_code == 2
    assert "lora.r: 4 -> 8" in done.stderr


def of_many_lengths(place):
    rows = [f"{' '.join(['the fox'] * (i % 5) + ['met the owl'])},{'even' if i % 2 else 'odd'}" for i in range(200)]
    (place / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")


@pytest.mark.parametrize("accumulated", [1, 2])
def test_pieces_of_a_batch_teach_what_the_batch_does(accumulated, place, llmkit, monkeypatch):
    of_many_lengths(place)
    monkeypatch.setattr("llmkit.speed.length_groups.LAUNCH_COST", 0.0)
    monkeypatch.setattr("llmkit.speed.length_groups.FEWEST", 1.0)
    made, sound = [], length_groups.microbatches

    def microbatches(*args):
        made.append(sound(*args))
        return made[-1]

    monkeypatch.setattr(length_groups, "microbatches", microbatches)
    words = ("model.config.hidden_dropout_prob=0.0", "model.config.attention_probs_dropout_prob=0.0")
    words += ("trainer.train_sampling_strategy=random", f"trainer.gradient_accumulation_steps={accumulated}")
    finetune(llmkit, *words, name="pieces")
    assert max(map(len, made)) > 1
    assert sum(len(piece["labels"]) for batch in made for piece in batch) == 4 * 8 * accumulated
    made.clear()
    finetune(llmkit, *words, "speed.split_batches=false", name="whole")
    assert not made
    assert losses(place / "pieces") == pytest.approx(losses(place / "whole"), rel=1e-5)
    pieces_, whole = weights(place / "pieces"), weights(place / "whole")
    for name in whole:
        torch.testing.assert_close(pieces_[name], whole[name], rtol=1e-3, atol=1e-4)


def test_two_processes_learn_what_one_does(place, llmkit, two_processes):
    """The same examples in the same batches, each process with half of them; evaluation counts every row once.

    Each process cuts its batches into pieces of its own: they add up their gradients once a batch.
    """
    of_many_lengths(place)
    first = (
        "import os\nfrom pathlib import Path\nfrom llmkit.speed import length_groups\n"
        "length_groups.LAUNCH_COST, length_groups.FEWEST, sound = 0.0, 1.0, length_groups.microbatches\n"
        "def microbatches(*args):\n"
        "    found = sound(*args)\n"
        "    Path(f'pieces-{os.environ[\"RANK\"]}-{len(found)}').touch()\n"
        "    return found\n"
        "length_groups.microbatches = microbatches\n"
    )
    words = ("trainer.max_steps=15", "model.config.hidden_dropout_prob=0.0", "trainer.learning_rate=1e-3")
    words += ("model.config.attention_probs_dropout_prob=0.0",)
    finetune(llmkit, *words, name="one")
    batch = "trainer.per_device_train_batch_size=4"
    done = two_processes("finetune", "recipe.toml", *words, batch, "--output-dir", "two", first=first)
    assert done.exit_code == 0, done.stderr
    assert {path.name[:8] for path in place.glob("pieces-*-[234]")} == {"pieces-0", "pieces-1"}
    assert losses(place / "two") == pytest.approx(losses(place / "one"), rel=1e-5)
    one, two = (json.loads((place / name / "run.json").read_text())["metrics"] for name in ("one", "two"))
    for key in ("eval_loss", "eval_accuracy", "eval_f1", "eval_matthews_correlation"):
        assert two[key] == pytest.approx(one[key], rel=1e-5)
