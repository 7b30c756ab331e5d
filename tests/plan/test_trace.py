"""A trace computes nothing and finds what a training then takes."""

from pathlib import Path

import pytest
from conftest import corpus
from torch.profiler import ProfilerActivity, profile
from transformers import GPT2LMHeadModel, TrainerCallback

from llmkit.dry_run import outlook_of
from llmkit.errors import UserError
from llmkit.plan import architectures, closed_form
from llmkit.plan.trace import trace
from llmkit.recipe import load
from llmkit.recipe.tasks import TASKS
from llmkit.training import train
from llmkit.training.arguments import training_arguments

WIDE = {
    "causal": ["model.config.n_embd=64"],
    "masked": ["model.config.hidden_size=64", "model.config.intermediate_size=256"],
}
for words in WIDE.values():  # two steps of two micro-batches in an epoch; the tokenizer that is trained is smaller
    words += ["model.config.vocab_size=300", "data.block_size=32", "trainer.per_device_train_batch_size=12"]
WAYS = {
    "plain": [],
    "accumulated": ["trainer.gradient_accumulation_steps=2"],
    "checkpointing": ["trainer.activation_checkpointing=true"],
    "dropout": ["model.config.{}=0.1"],
}
DROPOUT = {"causal": "resid_pdrop", "masked": "hidden_dropout_prob"}


class Allocated(TrainerCallback):
    """The most memory that torch's allocator gives out from the start of training to the end of step 2."""

    def __init__(self):
        self.most = 0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.weights = sum(p.untyped_storage().nbytes() for p in model.parameters())
        self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.profile.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step != 2:
            return
        self.profile.__exit__(None, None, None)
        events = [e for e in self.profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        held = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            self.most = max(self.most, held)


def traced(recipe):
    outlook = outlook_of(recipe, 1)
    args = training_arguments(dict(outlook.settings), Path("x"))
    return trace(outlook.recipe, outlook.config, args, outlook.assembly), outlook


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_the_peak_is_what_torch_gives_out_in_a_training(kind, way, workplace):
    words = [*WIDE[kind], *(word.format(DROPOUT[kind]) for word in WAYS[way]), "trainer.max_steps=3"]
    words += ["data.validation_fraction=0.05"]
    recipe = load(f"{kind}.toml", words, None, None, "pretrain")
    watch = Allocated()
    train.run(recipe, workplace / "run", resume=False, watch=watch)
    found, _ = traced(recipe)
    assert found.peak == pytest.approx(watch.weights + watch.most, rel=0.03)


def test_operations_are_six_times_the_parameters_and_attention(workplace):
    """Each number of a matrix multiplies and adds three times for each token: forward, and twice backward."""
    found, _ = traced(load("causal.toml", WIDE["causal"], None, None, "pretrain"))
    width, length, layers = 64, 32, 2
    in_matrices = found.parameters - length * width - layers * 13 * width - 2 * width  # not positions, biases, norms
    attention = 2 * length * width * layers
    assert found.flops >= 6 * (in_matrices + attention) * 12 * length
    assert found.flops == pytest.approx(
        6 * (in_matrices + attention) * 12 * length, rel=0.03
    )  # backward makes scores anew


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_the_closed_form_is_near_the_trace(kind, bf16, workplace):
    recipe = load(f"{kind}.toml", WIDE[kind], None, None, "pretrain")
    outlook = outlook_of(recipe, 1)
    args = training_arguments(dict(outlook.settings), Path("x"))
    args.bf16 = bf16
    found = trace(outlook.recipe, outlook.config, args)
    config = outlook.config.to_dict()
    model = architectures.model_of(config, TASKS[recipe.task].auto_class)
    settings = {**outlook.settings, "bf16": bf16}
    formula = closed_form.needs(model, closed_form.batch_of(recipe, config, 1, settings))
    assert formula.parameters == found.parameters
    assert formula.peak == pytest.approx(found.peak, rel=0.15)
    assert formula.flops == pytest.approx(found.flops, rel=0.1)


def test_muon_and_an_average_are_traced(workplace):
    asked = [*WIDE["causal"], "optimizer.name=muon", "optimizer.ema=0.9"]
    recipe = load("causal.toml", asked, None, None, "pretrain")
    found, outlook = traced(recipe)
    formula = closed_form.of_recipe(outlook.recipe)
    assert found.memory["optimizer"] == pytest.approx(formula.memory["optimizer"], rel=0.02)
    assert found.memory["average"] == formula.memory["average"]
    assert formula.peak == pytest.approx(found.peak, rel=0.15)


def test_several_processes_hold_the_gradients_twice_in_buckets_of_ddp(workplace):
    recipe = load("causal.toml", [*WIDE["causal"], "trainer.per_device_train_batch_size=6"], None, None, "pretrain")
    outlook = outlook_of(recipe, 2)
    args = training_arguments(dict(outlook.settings), Path("x"))
    one, two = (trace(outlook.recipe, outlook.config, args, processes=number) for number in (1, 2))
    assert "buckets" not in one.memory
    assert two.memory["buckets"] == 4 * two.trained
    assert two.peak == one.peak + two.memory["buckets"]
    formula = closed_form.of_recipe(outlook.recipe, 2)
    assert formula.memory["buckets"] == two.memory["buckets"]


def test_an_adapter_has_gradients_of_its_own_alone(workplace, base):
    rows = [f"{line},{i % 2}" for i, line in enumerate(corpus(40).splitlines())]
    (workplace / "rows.csv").write_text("\n".join(["text,label", *rows]))
    (workplace / "lora.toml").write_text(
        f'task = "text-classification"\n[model]\nname = "{base}"\n'
        '[data]\npath = "rows.csv"\nvalidation_fraction = 0.2\n'
        "[lora]\nr = 4\n[trainer]\nmax_steps = 2\n"
    )
    found, outlook = traced(load("lora.toml", [], None, None, "finetune"))
    assert found.trained < found.parameters / 10
    assert found.memory["optimizer"] == pytest.approx(8 * found.trained, rel=0.05)
    formula = closed_form.of_recipe(outlook.recipe)
    assert (formula.parameters, formula.trained) == (found.parameters, found.trained)


def test_what_looks_at_numbers_is_refused_with_a_remedy(workplace, monkeypatch):
    recipe = load("causal.toml", [], None, None, "pretrain")
    forward = GPT2LMHeadModel.forward

    def looks(self, input_ids=None, **options):
        return forward(self, input_ids, **options) if input_ids.sum() else None

    monkeypatch.setattr(GPT2LMHeadModel, "forward", looks)
    with pytest.raises(UserError, match="cannot be traced") as refused:
        traced(recipe)
    assert "--measure" in refused.value.hint


def test_nothing_is_computed(workplace):
    words = ["model.config.n_embd=100000", "model.config.n_head=1000", "model.config.n_layer=1"]
    found, _ = traced(load("causal.toml", words, None, None, "pretrain"))
    assert found.peak > 1e12  # more than there is
