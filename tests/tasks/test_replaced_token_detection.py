"""ELECTRA: a generator that fills in hidden tokens, a discriminator that finds them, and one set of embeddings."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REST, corpus, losses, pretrained
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
    ElectraConfig,
    ElectraForPreTraining,
)

from llmkit.data.text.documents import Documents
from llmkit.data.text.pack import EVALUATION, Window
from llmkit.errors import UserError
from llmkit.models.tokenizer import load as load_tokenizer
from llmkit.recipe import load
from llmkit.recipe.data_tables import ReplacedData
from llmkit.recipe.schema import Generator, Model, Tokenizer
from llmkit.tasks import replaced_token_detection as task

RECIPE = (
    """
task = "replaced-token-detection"
[model.config]
model_type = "electra"
num_hidden_layers = 2
num_attention_heads = 4
hidden_size = 32
embedding_size = 16
intermediate_size = 64
max_position_embeddings = 32
hidden_dropout_prob = 0.0
[tokenizer]
type = "wordpiece"
vocab_size = 300
"""
    + REST
)
SIZES = {"hidden_size": 32, "embedding_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 305}
SIZES |= {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "max_position_embeddings": 32}
DATA = ReplacedData(path="x")
LENGTH = 20  # between [CLS] and [SEP]; 15 % of it are 3


@pytest.fixture(scope="module")
def words():
    """A tokenizer with three hundred ordinary tokens behind the five special ones."""
    texts = ["".join(chr(n) for n in range(0x4E00, 0x4E00 + 300))]
    table = Tokenizer(type="characters")
    found = load_tokenizer(table, Model(config={}), "masked-lm", Documents(lambda: iter(texts), "hanzi", "`x`"), 32)
    assert len(found) == SIZES["vocab_size"]
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run beside the files it came of."""
    return pretrained(tmp_path_factory.mktemp("electra"), "electra.toml", RECIPE, "run")


@pytest.fixture
def place(workplace):
    (workplace / "electra.toml").write_text(RECIPE)
    return workplace


def pretrain(llmkit, *given, name="run"):
    done = llmkit("pretrain", "electra.toml", *given, "--output-dir", name)
    assert done.exit_code == 0, done.stderr
    return done.stderr


def record(run):
    return json.loads((run / "run.json").read_text())


def built(generator=None, seed=1, **sizes):
    config = ElectraConfig(**{**SIZES, **sizes})
    return task.create_model(Model(init="scratch", generator=generator), config, seed)[0].eval()


def windows(number=6, first=5, epoch=0):
    draw = np.random.default_rng(0)
    starts = np.zeros(1, np.int64)
    return [Window(draw.integers(first, SIZES["vocab_size"], LENGTH), starts, index, epoch) for index in range(number)]


def collate(words, found, seed=1, **data):
    return task.collator(DATA.model_copy(update=data), words, None, seed)(found)


def outputs_of(model, batch):
    with torch.no_grad():
        return model(batch["input_ids"], batch["attention_mask"], batch["draws"])


def shared(model):
    """The pairs of tensors that must be one."""
    its, mine = (each.base_model.embeddings for each in (model.generator, model.discriminator))
    pairs = [(getattr(its, table).weight, getattr(mine, table).weight) for table in task.TABLES]
    return [*pairs, (model.generator.generator_lm_head.weight, mine.word_embeddings.weight)]


# --- batches ----------------------------------------------------------------------------------------------------------


def test_hidden_tokens_are_labelled_and_special_ones_never_touched(words):
    found = windows(200, first=0)  # special tokens among them
    batch = collate(words, found)
    text = torch.from_numpy(np.stack([window.ids for window in found]))
    assert all(value.shape == (200, LENGTH + 2) for value in batch.values())
    assert batch["input_ids"][:, 0].unique().tolist() == [words.cls_token_id]
    assert batch["input_ids"][:, -1].unique().tolist() == [words.sep_token_id]
    inputs, labels, draws, weights = (batch[key][:, 1:-1] for key in ("input_ids", "labels", "draws", "weights"))
    hidden, ordinary = labels != -100, text >= 5
    assert (~ordinary).any()
    assert not (hidden & ~ordinary).any()
    assert torch.equal(hidden.sum(dim=1), (0.15 * ordinary.sum(dim=1)).round().long())
    assert torch.equal(labels[hidden], text[hidden])
    assert torch.equal(inputs, torch.where(hidden, words.mask_token_id, text))
    assert torch.equal(draws >= 0, hidden)
    assert 0.45 < draws[hidden].mean() < 0.55 and draws.max() < 1
    share = 50 * hidden.sum(dim=1, keepdim=True) / ordinary.sum(dim=1, keepdim=True)
    torch.testing.assert_close(weights, torch.where(ordinary, share, 0.0))
    for key, none in (("labels", -100), ("draws", -1), ("weights", 0)):
        assert batch[key][:, [0, -1]].unique().tolist() == [none]


def test_draws_hang_on_seed_epoch_and_block_alone(words):
    found = windows()
    batch = collate(words, found)
    for b in (0, 3, 5):
        alone = collate(words, found[b : b + 1])
        assert all(torch.equal(alone[key][0], batch[key][b]) for key in batch)
    others = (
        collate(words, found, seed=2),
        collate(words, windows(epoch=1)),
        collate(words, windows(epoch=EVALUATION)),
    )
    for other in others:
        assert not torch.equal(other["draws"], batch["draws"])


def test_a_block_of_special_tokens_alone_has_no_loss(words):
    none = Window(np.full(LENGTH, words.unk_token_id), np.zeros(1, np.int64), 0, 0)
    batch = collate(words, [none, *windows(1)])
    model = built()
    found = task.losses(outputs_of(model, batch), batch)
    assert found[0].sum() == 0 and found[1].sum() > 0
    assert torch.isfinite(task.preprocess_logits_for_metrics(model, outputs_of(model, batch), batch)).all()


def test_a_short_window_is_padded_to_no_effect(words):
    long, other = windows(2)
    short = Window(other.ids[:7], other.starts, other.index, other.epoch)
    batch, alone = collate(words, [long, short]), collate(words, [short])
    assert batch["attention_mask"].sum(dim=1).tolist() == [LENGTH + 2, 9]
    assert all(torch.equal(batch[key][1, :9], alone[key][0]) for key in batch)
    model = built()
    found, wanted = (task.losses(outputs_of(model, each), each)[-1].sum() for each in (batch, alone))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        *(task.preprocess_logits_for_metrics(model, outputs_of(model, each), each)[-1] for each in (batch, alone))
    )


def test_a_tokenizer_without_a_mask_is_refused(words, tmp_path):
    words.save_pretrained(tmp_path)
    lacking = AutoTokenizer.from_pretrained(tmp_path)
    lacking.mask_token = None
    with pytest.raises(UserError, match="no mask_token to hide tokens, which replaced-token-detection needs"):
        collate(lacking, windows())


# --- the model --------------------------------------------------------------------------------------------------------


def test_the_generator_is_a_quarter_as_wide_unless_it_is_told():
    model = built()
    config = model.generator.config
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (8, 1, 16)
    assert (config.num_hidden_layers, config.embedding_size, config.vocab_size) == (2, 16, 305)
    wide = built(Generator(config={"hidden_size": 16, "num_hidden_layers": 1})).generator.config
    assert (wide.hidden_size, wide.num_hidden_layers, wide.num_attention_heads) == (16, 1, 1)


def test_the_embeddings_are_one_and_stay_so_after_a_step_and_a_reload(words, tmp_path):
    model = built()
    assert all(a is b for a, b in shared(model))
    batch = collate(words, windows())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [a.clone() for a, _ in shared(model)]
    for _ in range(2):
        outputs = model(batch["input_ids"], batch["attention_mask"], batch["draws"])
        optimizer.zero_grad()
        task.losses(outputs, batch).sum().backward()
        optimizer.step()
    assert all(a is b for a, b in shared(model))
    assert not any(torch.equal(a, b) for (a, _), b in zip(shared(model), before, strict=True))
    model.save_each(tmp_path, words)
    again = task.load_model(str(tmp_path))
    assert all(a is b for a, b in shared(again))
    for a, b in zip(shared(again), shared(model), strict=True):
        assert torch.equal(a[0], b[0])
    torch.testing.assert_close(outputs_of(again, batch).scores, outputs_of(model, batch).scores)


def test_both_learn_from_the_shared_tables(words):
    """The gradient of the word embeddings is that of the generator's loss and of the discriminator's."""
    model, batch = built(), collate(words, windows())
    table = model.discriminator.base_model.embeddings.word_embeddings.weight
    parts = []
    for weight in (0.0, 50.0):
        model.zero_grad()
        outputs = model(batch["input_ids"], batch["attention_mask"], batch["draws"])
        task.losses(outputs, {**batch, "weights": weight * batch["weights"]}).sum().backward()
        parts.append(table.grad.clone())
    assert parts[0].abs().sum() > 0 and not torch.allclose(parts[0], parts[1])


def test_the_state_holds_every_weight_once_and_is_read_again():
    model, other = built(), built(seed=2)
    state = model.state_dict()
    assert sum(value.numel() for value in state.values()) == model.num_parameters()
    found = other.load_state_dict(state)
    assert found.missing_keys == [] and found.unexpected_keys == []
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))
    assert all(a is b for a, b in shared(other))
    tables = sum(getattr(model.discriminator.base_model.embeddings, name).weight.numel() for name in task.TABLES)
    assert model.num_parameters(exclude_embeddings=True) == model.num_parameters() - tables
    del state["discriminator.discriminator_predictions.dense.bias"]
    assert other.load_state_dict(state, strict=False).missing_keys == [
        "discriminator.discriminator_predictions.dense.bias"
    ]


def test_chosen_tokens_fall_as_the_generator_says():
    logits = torch.tensor([2.0, -1.0, 0.5, -math.inf, 1.0, 0.0, -3.0, 1.5])
    draws = torch.from_numpy(np.random.default_rng(0).random(40_000, np.float32))
    found = task.sample(logits.expand(len(draws), -1), draws)
    expected = logits.softmax(dim=0) * len(draws)
    counts = torch.bincount(found, minlength=8)
    assert counts[3] == 0
    possible = expected > 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 22.5  # 6 degrees of freedom: above it once in a thousand


def test_the_choice_is_the_first_token_up_to_which_the_sum_exceeds_the_draw():
    logits = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0]).log().expand(7, -1)
    draws = torch.tensor([0.0, 0.2499, 0.25, 0.5, 0.7499, 0.75, 0.99999994])
    assert task.sample(logits, draws).tolist() == [1, 1, 3, 3, 3, 4, 4]
    large = torch.randn(1, 50_000, generator=torch.Generator().manual_seed(0))
    assert task.sample(large, torch.tensor([1 - 2**-24])).item() >= 49_990  # the sum of so many is not quite 1


def test_the_choice_is_the_same_whatever_the_batch(words):
    model, found = built(initializer_range=0.5), windows()
    together = outputs_of(model, collate(words, found)).input_ids
    for b in range(len(found)):
        alone = outputs_of(model, collate(words, found[b : b + 1])).input_ids
        assert torch.equal(alone[0], together[b])
    batch = collate(words, found)
    hidden = batch["labels"] != -100
    assert torch.equal(together[~hidden], batch["input_ids"][~hidden])
    assert (together[hidden] != words.mask_token_id).any()


def test_every_parameter_of_both_learns_and_no_gradient_goes_through_the_choice(words):
    model, batch = built(), collate(words, windows())
    outputs = model(batch["input_ids"], batch["attention_mask"], batch["draws"])
    assert not outputs.input_ids.is_floating_point()
    task.losses(outputs, batch).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []
    model.zero_grad()
    outputs = model(batch["input_ids"], batch["attention_mask"], batch["draws"])
    outputs.scores.sum().backward()
    own = {name for name, p in model.generator.named_parameters() if p.grad is not None}
    assert all("_embeddings" in name or "lm_head.weight" in name for name in own)


def test_the_discriminator_learns_to_tell(words):
    """Four texts by heart: it finds what was replaced in them, wherever tokens are hidden."""
    torch.manual_seed(0)
    model = built(initializer_range=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    aucs = []
    for epoch in range(75):
        batch = collate(words, windows(4, epoch=epoch))
        outputs = model(batch["input_ids"], batch["attention_mask"], batch["draws"])
        loss = task.losses(outputs, batch).sum() / (batch["labels"] != -100).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if epoch in (0, 74):
            batch = collate(words, [window for e in range(20) for window in windows(4, epoch=1000 + e)])
            kept = task.preprocess_logits_for_metrics(model, outputs_of(model, batch), batch)
            aucs.append(task.metrics(F.pad(kept, (2, 0), value=1.0).numpy(), None)["auc"])
    assert aucs[0] < 0.6
    assert aucs[1] > 0.75


# --- losses and metrics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [50.0, 3.0])
def test_the_loss_is_the_papers_sum_of_two_means(words, weight):
    model = built(initializer_range=0.5)
    batch = collate(words, windows(), discriminator_weight=weight)
    outputs = outputs_of(model, batch)
    text = torch.where(batch["labels"] != -100, batch["labels"], batch["input_ids"])
    hidden = (batch["labels"] != -100).nonzero().tolist()
    logits = model.generator(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    generator = -sum(logits[b, t].log_softmax(-1)[text[b, t]] for b, t in hidden) / len(hidden)
    scores = model.discriminator(outputs.input_ids, attention_mask=batch["attention_mask"]).logits
    truth = (outputs.input_ids != text).float()
    assert 0 < truth.sum() < len(hidden) + 1
    discriminator = F.binary_cross_entropy_with_logits(scores[:, 1:-1], truth[:, 1:-1])
    found = task.losses(outputs, batch)
    assert found.shape == batch["labels"].shape
    assert found[:, [0, -1]].abs().sum() == 0  # [CLS] and [SEP]
    total = found.sum() / (batch["labels"] != -100).sum()
    assert total.item() == pytest.approx((generator + weight * discriminator).item(), rel=1e-5)
    smoothed = task.losses(outputs, batch, training=True, label_smoothing=0.1).sum()
    assert smoothed != found.sum()
    assert torch.equal(task.losses(outputs, batch, label_smoothing=0.1), found)


def test_a_token_that_the_generator_got_right_counts_as_original():
    batch = {"labels": torch.tensor([[-100, 7, 8, -100]]), "weights": torch.tensor([[0.0, 1.0, 1.0, 1.0]])}
    scores = torch.tensor([[9.0, 2.0, 2.0, -3.0]])
    outputs = task.Outputs(torch.zeros(2, 10), torch.tensor([[1, 7, 9, 4]]), scores)  # 7 is right, 9 is not
    expected = [
        0.0,
        math.log(10) + math.log1p(math.exp(2)),
        math.log(10) + math.log1p(math.exp(-2)),
        math.log1p(math.exp(-3)),
    ]
    assert task.losses(outputs, batch)[0].tolist() == pytest.approx(expected, rel=1e-5)
    kept = task.preprocess_logits_for_metrics(None, outputs, batch)[0]
    original, replaced = kept[2:].split(task.BINS)
    assert (original.sum(), replaced.sum()) == (2, 1)


def test_metrics_are_those_of_the_scores_themselves():
    draw = torch.Generator().manual_seed(0)
    labels = torch.full((40, 100), -100)
    labels[:, :15] = 7
    tokens = torch.where(torch.rand(40, 100, generator=draw) < 0.3, 7, 8)
    ordinary = torch.rand(40, 100, generator=draw) < 0.9
    truth = (labels == 7) & (tokens == 8)
    scores = 2 * torch.randn(40, 100, generator=draw) - 3 + 3 * truth
    scores[0, 0], scores[1, 99] = 1e4, -1e4  # beyond the last bins
    batch = {"labels": labels, "weights": 50 * 0.15 / 0.9 * ordinary}
    outputs = task.Outputs(torch.randn(600, 10, generator=draw), tokens, scores)
    rows = task.losses(outputs, batch).sum(dim=1)
    stats = torch.cat(
        [torch.stack([rows, torch.full((40,), 15.0)], dim=1), task.preprocess_logits_for_metrics(None, outputs, batch)],
        dim=1,
    )
    found = task.metrics(stats.numpy(), None)
    assert list(found) == ["loss", "generator_loss", "discriminator_loss", "auc", "accuracy"]
    picked, right = scores[ordinary], truth[ordinary]
    assert found["auc"] == pytest.approx(roc_auc_score(right, picked), abs=2e-3)
    assert found["accuracy"] == pytest.approx(((picked > 0) == right).float().mean().item(), rel=1e-6)
    discriminator = F.binary_cross_entropy_with_logits(picked, right.float())
    assert found["discriminator_loss"] == pytest.approx(discriminator.item(), rel=1e-5)
    generator = F.cross_entropy(outputs.logits, torch.full((600,), 7))
    assert found["generator_loss"] == pytest.approx(generator.item(), rel=1e-5)
    assert found["loss"] == pytest.approx(rows.sum().item() / 600, rel=1e-5)


def test_auc_counts_ties_half():
    assert task.auc(np.array([2, 0]), np.array([0, 3])) == 1
    assert task.auc(np.array([0, 2]), np.array([3, 0])) == 0
    assert task.auc(np.array([5, 0]), np.array([3, 0])) == 0.5
    assert task.auc(np.array([1, 1]), np.array([1, 1])) == 0.5
    assert task.auc(np.array([3, 1]), np.array([0, 2])) == 0.875
    assert math.isnan(task.auc(np.array([3, 1]), np.array([0, 0])))


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_a_discriminator_and_below_it_its_generator(run):
    said = json.loads((run / "config.json").read_text())
    assert (said["model_type"], said["architectures"]) == ("electra", ["ElectraForPreTraining"])
    loaded = {}
    for auto, folder in ((AutoModelForPreTraining, run), (AutoModelForMaskedLM, run / "generator")):
        loaded[auto], found = auto.from_pretrained(folder, output_loading_info=True)
        assert not any(found.values()), found
        assert AutoTokenizer.from_pretrained(folder)("the fox")["input_ids"]
    _, found = AutoModel.from_pretrained(run, output_loading_info=True)
    assert not found["missing_keys"]
    both = task.Electra(*loaded.values())
    assert record(run)["parameters"] == both.num_parameters()
    assert all(torch.equal(a, b) for a, b in shared(both))
    assert sorted(path.name for path in run.glob("*.safetensors")) == ["model.safetensors"]


def test_a_run_reports_both_losses_and_how_well_it_tells_and_evaluates_to_the_same(run, llmkit, monkeypatch):
    monkeypatch.chdir(run.parent)
    metrics = record(run)["metrics"]
    again = llmkit("evaluate", "run")
    assert again.exit_code == 0, again.stderr
    found = json.loads(again.stdout)
    assert set(found) == {f"eval_{key}" for key in ("loss", "generator_loss", "discriminator_loss", "auc", "accuracy")}
    for key, value in found.items():
        assert value == pytest.approx(metrics[key], rel=1e-5)
    parts = found["eval_generator_loss"] + 50 * found["eval_discriminator_loss"]
    assert found["eval_loss"] == pytest.approx(parts, rel=1e-3)  # the share of hidden tokens is rounded in each block


def test_every_tensor_of_both_moves_in_training(place, llmkit):
    pretrain(llmkit, "trainer.save_steps=1", "trainer.max_steps=2", "trainer.warmup_steps=0")
    first, last = (load_file(place / f"run/checkpoint-{step}/model.safetensors") for step in (1, 2))
    assert first.keys() == last.keys() and len(first) > 60
    assert {name.split(".")[0] for name in first} == {"discriminator", "generator"}
    assert [name for name in first if torch.equal(first[name], last[name])] == []


@pytest.mark.long
def test_resuming_is_exact(place, llmkit):
    given = (
        "trainer.max_steps=20",
        "trainer.save_steps=17",
        "trainer.logging_steps=1",
        "model.config.hidden_dropout_prob=0.1",
    )
    pretrain(llmkit, *given, name="straight")
    pretrain(llmkit, *given, name="broken")
    broken = place / "broken"
    for file in [*broken.glob("*.safetensors"), *(broken / "checkpoint-20").iterdir()]:
        file.unlink()
    (broken / "checkpoint-20").rmdir()
    (broken / "run.json").write_text(json.dumps({**record(broken), "status": "stopped"}))
    assert "resuming from broken/checkpoint-17" in pretrain(llmkit, *given, "--resume", name="broken")
    for file in ("model.safetensors", "generator/model.safetensors"):
        straight, resumed = (load_file(place / name / file) for name in ("straight", "broken"))
        assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    assert losses(broken)[-3:] == losses(place / "straight")[-3:]


def test_the_discriminator_is_fine_tuned(run, llmkit, monkeypatch):
    monkeypatch.chdir(run.parent)
    texts = corpus(60).splitlines()
    rows = ["text,label", *(f"{text},{'fox' if 'fox' in text[:8] else 'none'}" for text in texts)]
    (run.parent / "fox.csv").write_text("\n".join(rows) + "\n")
    done = llmkit(
        *("finetune", "--task", "text-classification", "data.path=fox.csv", "model.name=run", "data.max_length=32"),
        *("trainer.max_steps=2", "data.validation_fraction=0.2", "--output-dir", "tuned"),
    )
    assert done.exit_code == 0, done.stderr
    assert "newly initialized: classifier" in done.stderr
    assert json.loads(llmkit("predict", "tuned", "the fox saw it").stdout)["label"] in ("fox", "none")


def test_going_on_from_a_run_takes_its_generator_too(run, llmkit, monkeypatch):
    monkeypatch.chdir(run.parent)
    given = ("trainer.max_steps=1", "trainer.learning_rate=0")
    said = pretrain(llmkit, "model.name=run", *given, name="on")
    assert f"the generator is `{run / 'generator'}`" in said
    before, after = record(run)["metrics"], record(run.parent / "on")["metrics"]
    assert after["eval_loss"] == pytest.approx(before["eval_loss"], rel=1e-5)
    ElectraForPreTraining.from_pretrained(run).save_pretrained(run.parent / "alone")
    AutoTokenizer.from_pretrained(run).save_pretrained(run.parent / "alone")
    said = pretrain(llmkit, "model.name=alone", *given, name="alone-on")
    assert "the generator starts from scratch; model.generator.name sets another" in said
    said = pretrain(llmkit, "model.name=alone", "model.generator.name=run/generator", *given, name="named")
    assert "the generator is" not in said
    assert record(run.parent / "named")["metrics"]["eval_loss"] == pytest.approx(before["eval_loss"], rel=1e-5)
    for name in ("alone", "run/generator"):
        refused = llmkit("evaluate", name, "electra.toml")
        assert refused.exit_code == 2


def test_activations_are_computed_again_to_the_same_losses(place, llmkit):
    pretrain(llmkit, "trainer.max_steps=3", name="plain")
    pretrain(llmkit, "trainer.max_steps=3", "trainer.activation_checkpointing=true", name="again")
    assert losses(place / "again") == losses(place / "plain")


# --- mistakes ---------------------------------------------------------------------------------------------------------


def refused(table, config):
    with pytest.raises(UserError) as caught:
        task.create_model(table, config, 1)
    return caught.value


def test_other_architectures_are_refused(run, base, place, llmkit):
    said = llmkit("pretrain", "electra.toml", f"model.name={base}")
    assert said.exit_code == 2
    assert "replaced-token-detection is for a discriminator, such as electra" in said.stderr
    other = Model(name=str(run), generator=Generator(name=str(base)))
    assert (
        "model_type: bert in [model.generator], electra in [model]"
        in refused(other, ElectraConfig.from_pretrained(run)).details
    )


def test_a_generator_that_does_not_fit_is_refused(run):
    config = ElectraConfig(**SIZES)
    unlike = refused(Model(init="scratch", generator=Generator(config={"embedding_size": 8})), config)
    assert "it shares the discriminator's embeddings" in unlike.message
    assert unlike.details == ("embedding_size: 8 in [model.generator], 16 in [model]",)
    heads = refused(Model(init="scratch", generator=Generator(config={"num_attention_heads": 3})), config)
    assert heads.message == "[model.generator]: hidden_size = 8 is not divisible by its 3 attention heads"
    unknown = refused(Model(init="scratch", generator=Generator(config={"hiden_size": 3})), config)
    assert unknown.message == "1 unknown key in model.generator.config"
    assert unknown.details == ("model.generator.config.hiden_size: not in ElectraConfig, did you mean `hidden_size`?",)


def problems(*overrides):
    with pytest.raises(UserError) as caught:
        load("electra.toml", list(overrides))
    return list(caught.value.details)


def test_what_trains_a_part_or_needs_other_weights_is_refused(place):
    with_recipe = "command line with `electra.toml`  "
    whole = "replaced-token-detection trains all weights of both its models"
    assert problems("model.name=run", "lora.r=4") == [f"lora: {whole}"]
    assert problems("model.name=run", "model.train=top-1") == [f"{with_recipe}model.train: {whole}"]
    assert problems("model.generator.name=run/generator") == [
        f"{with_recipe}model.generator.name: the generator shares the embeddings of the discriminator, which "
        "starts from scratch"
    ]


def test_evaluate_writes_the_loss_of_each_document(run, llmkit, monkeypatch):
    """Of hidden tokens the generator's, of all ordinary ones the discriminator's; a mean over hidden tokens."""
    monkeypatch.chdir(run.parent)
    done = llmkit("evaluate", "run", "--output", "texts.jsonl")
    assert done.exit_code == 0, done.stderr
    rows = [json.loads(line) for line in (run.parent / "texts.jsonl").read_text().splitlines()]
    total = sum(row["tokens"] for row in rows)
    loss = sum(row["loss"] * row["tokens"] for row in rows) / total
    # A document without a hidden token is not in the file, and some of the discriminator's loss is its own.
    assert loss == pytest.approx(json.loads(done.stdout)["eval_loss"], rel=0.1)
    assert len(rows) > 3


def test_a_run_does_not_predict_and_its_generator_does(run, llmkit, monkeypatch):
    monkeypatch.chdir(run.parent)
    said = llmkit("predict", "run", "the fox")
    assert said.exit_code == 2
    assert "it is meant to be fine-tuned" in said.stderr
    filled = llmkit("predict", "run/generator", "the [MASK] saw it")
    assert filled.exit_code == 0, filled.stderr
