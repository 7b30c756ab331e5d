"""What the installed libraries accept is what their source says, and the tables of messages keep up with it."""

import dataclasses
import subprocess
import sys

import pytest

from llmkit.recipe import upstream
from llmkit.recipe.types import read_annotation


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ("int", "an integer"),
        ("float", "a number"),
        ("bool | None", "true or false"),
        ("dict | str | None", "a string or a table"),
        ("Optional[Union[list[str], str]]", "a string or an array of strings"),
        ("Optional[Union[list[int], dict[str, list[int]]]]", "an array of integers or a table of arrays of integers"),
        ("Literal['none', 'all']", 'one of "none", "all"'),
        ("str | None | Literal[False]", "a string or false"),
        ("Mode | str", 'one of "on", "off"'),
        ("None | str | Mode", 'one of "on", "off"'),
        ("str | list[Mode]", 'a string or an array of one of "on", "off"'),
        ("bool | Literal['pissa', 'pissa_niter_[number of iters]']", "a string or true or false"),
        ("dict[tuple[int], float]", "a string, a number, true or false, an array or a table"),
        ("SomeConfig | dict", "a string, a number, true or false, an array or a table"),
    ],
)
def test_an_annotation_becomes_toml_types(annotation, words):
    assert str(read_annotation(annotation, {"Mode": ("on", "off")}.get)) == words


@pytest.mark.parametrize(
    ("annotation", "admitted", "refused"),
    [
        ("float", [1, 1.5], [True, "1", [1], {}]),
        ("int", [1], [1.0, True, "1"]),
        ("bool", [True, False], [0, 1, "true"]),
        ("list[str]", [[], ["a"]], ["a", [1], ["a", 1]]),
        ("dict[str, int]", [{}, {"a": 1}], [{"a": "b"}, []]),
        ("Literal[False] | None", [False], [0, True, "false"]),
        ("Any", [1, "a", [], {}], []),
    ],
)
def test_types_are_strict(annotation, admitted, refused):
    kind = read_annotation(annotation, lambda name: ())
    assert [value for value in admitted if not kind.admits(value)] == []
    assert [value for value in refused if kind.admits(value)] == []


def test_fields_are_those_of_the_real_classes():
    from peft import LoraConfig
    from transformers import GenerationConfig, TrainingArguments

    real = {each.name for each in dataclasses.fields(TrainingArguments) if each.init}
    assert set(upstream.fields("TrainingArguments")) == real
    real = {each.name for each in dataclasses.fields(LoraConfig) if each.init}
    assert set(upstream.fields("LoraConfig")) == real
    real = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert set(upstream.fields("GenerationConfig")) == real


def test_defaults_and_enum_values_are_the_real_ones():
    from transformers import SchedulerType, TrainingArguments
    from transformers.trainer_utils import SaveStrategy
    from transformers.training_args import OptimizerNames

    known = upstream.fields("TrainingArguments")
    real = {each.name: each.default for each in dataclasses.fields(TrainingArguments)}
    for name in ("learning_rate", "per_device_train_batch_size", "eval_strategy", "save_total_limit", "debug"):
        assert known[name].default == real[name]
    for name, enum in (
        ("lr_scheduler_type", SchedulerType),
        ("save_strategy", SaveStrategy),
        ("optim", OptimizerNames),
    ):
        assert set(known[name].type.values) == {each.value for each in enum}


@pytest.mark.parametrize("class_name", upstream.CLASSES)
def test_every_plain_default_is_admitted(class_name):
    for each in upstream.fields(class_name).values():
        if each.default is not None and each.name not in ("optim", "runtime_config"):  # their defaults are expressions
            assert each.type.admits(each.default), each


def test_what_annotations_leave_out_is_admitted():
    lora, trainer = upstream.fields("LoraConfig"), upstream.fields("TrainingArguments")
    assert lora["init_lora_weights"].type.admits("pissa_niter_16")
    assert lora["init_lora_weights"].type.admits("lora_ga")  # peft takes it, though its Literal does not name it
    assert trainer["fsdp"].type.admits(True)  # annotated `str | None`; its metadata has `const=True`
    assert trainer["debug"].type.admits(["underflow_overflow"])
    assert not trainer["debug"].type.admits(["underflow"])


def test_types_of_generation_come_from_its_docstring():
    known = upstream.fields("GenerationConfig")
    words = {name: str(known[name].type) for name in ("max_new_tokens", "stop_strings", "temperature", "do_sample")}
    assert words == {
        "max_new_tokens": "an integer",
        "stop_strings": "a string or an array of strings",
        "temperature": "a number",
        "do_sample": "true or false",
    }


def test_a_key_that_comes_back_is_taken_again(monkeypatch):
    monkeypatch.setitem(upstream.DROPPED, "seed", ("", "leave it out"))
    assert upstream.refusal("TrainingArguments", "seed", 1) == ""


def test_no_field_counts_as_dropped_and_replacements_exist():
    fields = upstream.fields("TrainingArguments")
    assert [key for key in upstream.DROPPED if key in fields] == []
    assert [new for new, _ in upstream.DROPPED.values() if new and new not in fields] == []
    assert [key for key, (new, words) in upstream.DROPPED.items() if new and new not in words] == []


def test_what_the_run_owns_are_fields():
    gone = {"push_to_hub_token", "push_to_hub_model_id", "push_to_hub_organization"}
    for class_name, owned in upstream.OWNED.items():
        assert set(owned) - gone - set(upstream.fields(class_name)) == set()
    hub = {name for name in upstream.fields("TrainingArguments") if name.startswith(("hub_", "push_to_hub"))}
    assert hub <= set(upstream.OWNED["TrainingArguments"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("warmup_ratio", 0.06, "use `warmup_steps = 0.06`"),
        ("no_cuda", True, "use `use_cpu = true`"),
        ("evaluation_strategy", "epoch", 'use `eval_strategy = "epoch"`'),
        ("group_by_length", True, 'use `train_sampling_strategy = "group_by_length"`'),
        ("tokenizer", "gpt2", "use the [tokenizer] table (`Trainer` calls it `processing_class`)"),
        ("split_batches", True, "use `accelerator_config = { split_batches = true }`"),
    ],
)
def test_a_dropped_key_says_what_replaced_it(key, value, message):
    refusal = upstream.refusal("TrainingArguments", key, value)
    assert refusal == f"not a field of TrainingArguments in {upstream.installed('TrainingArguments')}; {message}"


@pytest.mark.parametrize("key", upstream.DROPPED)
def test_every_dropped_key_makes_a_whole_sentence(key):
    assert "{value}" not in upstream.refusal("TrainingArguments", key, 1)


@pytest.mark.parametrize("key", upstream.OF_TRL)
def test_a_field_of_trl_says_what_does_the_same_here(key):
    assert key not in upstream.fields("TrainingArguments")
    assert upstream.refusal("TrainingArguments", key, 1) == f"a field of trl's SFTConfig; {upstream.OF_TRL[key]}"


def test_an_owned_key_says_why():
    assert upstream.refusal("TrainingArguments", "hub_token", "hf_x") == (
        "set by the run itself; no secrets in a recipe; upload the finished run with `hf upload`"
    )
    assert upstream.refusal("LoraConfig", "task_type", "CAUSAL_LM").startswith("set by the run itself; ")
    assert upstream.refusal("GenerationConfig", "output_scores", True).startswith("set by the run itself; ")
    assert upstream.refusal("TrainingArguments", "learning_rate", 1e-3) == ""
    assert upstream.refusal("GenerationConfig", "max_new_tokens", 1) == ""


def test_deprecated_fields_are_marked():
    trainer = {name for name, each in upstream.fields("TrainingArguments").items() if each.deprecated}
    assert trainer == {"gradient_checkpointing", "gradient_checkpointing_kwargs"}
    generation = {name for name, each in upstream.fields("GenerationConfig").items() if each.deprecated}
    assert {"penalty_alpha", "force_words_ids", "continuous_batching_config"} <= generation
    assert not {"disable_compile", "prefill_chunk_size", "max_new_tokens"} & generation


def test_reading_upstream_imports_none_of_it():
    code = (
        "import sys; from llmkit.recipe import upstream; [each.type for name in upstream.CLASSES for each in "
        "upstream.fields(name).values()]; print({'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
