"""Other libraries' words for a key, and where a mistake is said to be."""

import shlex

import pytest
from recipe_texts import PLAIN, problems

from llmkit import recipe
from llmkit.errors import UserError
from llmkit.recipe import schema, synonyms
from llmkit.recipe.keys import key_type
from llmkit.recipe.toml import split_key

PRETRAINING = [
    ("trainer.lr=1e-4", "trainer.learning_rate=1e-4"),
    ("trainer.epochs=3", "trainer.num_train_epochs=3"),
    ("trainer.num_epochs=3", "trainer.num_train_epochs=3"),
    ("trainer.max_epochs=3", "trainer.num_train_epochs=3"),
    ("trainer.batch_size=8", "trainer.per_device_train_batch_size=8"),
    ("trainer.bs=8", "trainer.per_device_train_batch_size=8"),
    ("trainer.train_batch_size=8", "trainer.per_device_train_batch_size=8"),
    ("trainer.steps=100", "trainer.max_steps=100"),
    ("trainer.warmup=10", "trainer.warmup_steps=10"),
    ("trainer.grad_accum=4", "trainer.gradient_accumulation_steps=4"),
    ("trainer.wd=.1", "trainer.weight_decay=0.1"),
    ("trainer.precision=bf16", "trainer.bf16=true"),
    ("trainer.mixed_precision=fp16", "trainer.fp16=true"),
    ("trainer.amp=True", "trainer.fp16=true"),
    ("lr=1e-4", "trainer.learning_rate=1e-4"),
    ("epochs=3", "trainer.num_train_epochs=3"),
    ("batch-size=8", "trainer.per_device_train_batch_size=8"),
    ("seed=3", "trainer.seed=3"),
    ("training.lr=1e-4", "trainer.learning_rate=1e-4"),
    ("dat.path=org/x", "data.path=org/x"),
    ("model.path=org/x", "model.name=org/x"),
    ("model.model_name_or_path=org/x", "model.name=org/x"),
    ("model=org/x", "model.name=org/x"),
    ("tokenizer.path=org/x", "tokenizer.name=org/x"),
    ("data=org/x", "data.path=org/x"),
    ("path=org/x", "data.path=org/x"),
    ("data.file=org/x", "data.path=org/x"),
    ("data.dataset=org/x y", "'data.path=org/x y'"),
    ("data.max_seq_length=64", "data.block_size=64"),
    ("data.max_length=64", "data.block_size=64"),
    ("data.test_size=.1", "data.validation_fraction=0.1"),
    ("data.val_split=0.1", "data.validation_fraction=0.1"),
    ("data.sep=;", "'data.delimiter=;'"),
    ("lora.rank=8", "lora.r=8"),
    ("lora=true", "lora.r=16"),
    ("lora.alpha=16", "lora.lora_alpha=16"),
    ("lora.dropout=0.1", "lora.lora_dropout=0.1"),
    ("generation.max_tokens=50", "generation.max_new_tokens=50"),
]
CLASSIFYING = [
    ("data.label=stars", "data.label_column=stars"),
    ("data.lable=stars", "data.label_column=stars"),
    ("data.text=review", "data.text_column=review"),
    ("data.max_seq_length=64", "data.max_length=64"),
    ("data.class_names=a, b", """'data.label_names=["a", "b"]'"""),
    ("evaluation.metric=f1", """'evaluation.metrics=["f1"]'"""),
    ("lora.target=q,v", "lora.target_modules=q,v"),
]


@pytest.mark.parametrize(
    ("task", "override", "meant"),
    [*(("causal-lm", *pair) for pair in PRETRAINING), *(("text-classification", *pair) for pair in CLASSIFYING)],
)
def test_another_word_is_answered_with_an_override_that_loads(write, task, override, meant):
    path = write(PLAIN.replace("causal-lm", task))
    (problem,) = problems(path, override)
    assert problem.endswith(f", did you mean `{meant}`?")
    recipe.load(path, shlex.split(meant))


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("[trainer]\nlr = 1e-4", "learning_rate"),
        ("[trainer]\nbatch_size = 8", "per_device_train_batch_size"),
        ("[lora]\nrank = 8", "r"),
        ("[trainer]\nmax_seq_length = 8", "data.block_size"),
    ],
)
def test_a_recipe_is_answered_with_the_key_alone(write, line, meant):
    (problem,) = problems(write(f"{PLAIN}{line}\n"))
    assert problem.endswith(f", did you mean `{meant}`?")
    assert problem.startswith("line 9  ")


def test_an_option_of_the_command_is_named_where_it_is_none_of_the_recipes(write):
    assert problems(write(PLAIN), "gpus=2")[0].endswith("did you mean `--processes 2`?")
    assert problems(write(PLAIN), "seeds=3")[0].endswith("did you mean `--seeds 3`?")


def test_a_word_without_a_value_is_answered_with_its_key(write):
    assert problems(write(PLAIN), "lr") == ["command line  lr: not an override, write `trainer.learning_rate=VALUE`"]


def test_a_file_that_is_no_override_is_answered_with_data_path(write):
    path = write(PLAIN)
    write("text\n", "here/my file.csv")
    assert problems(path, "my file.csv") == [
        "command line  my file.csv: not an override, did you mean `'data.path=my file.csv'`?"
    ]


def test_every_key_of_the_table_is_there():
    keys = [key for key in synonyms._WORDS if not key.startswith("--")]
    missing = [key for key in keys if not any(key_type(split_key(key), task) for task in schema.TASKS)]
    assert missing == []


# ---- whose mistake it is ---------------------------------------------------------------------------------------------


def refused(*words, **options):
    with pytest.raises(UserError) as caught:
        recipe.load(*words, **options)
    return str(caught.value)


def test_what_is_wrong_on_the_command_line_blames_no_file(write):
    for words, options in (((None, ["data.max_lenght=3"]), {"task": "sst2"}), (("glue", ["data.max_lenght=3"]), {})):
        assert refused(*words, **options) == (
            "error: 1 problem on the command line\n  data.max_lenght: unknown key, did you mean `data.max_length=3`?"
        )
    assert "problem on the command line\n" in refused(write(PLAIN), ["trainer.lr=3"])


def test_a_gap_that_a_task_leaves_to_the_user_is_on_the_command_line():
    assert refused(None, task="text-classification") == (
        "error: 1 problem on the command line\n  data.path: required: a Hub id, a file, a folder or a glob"
    )


def test_an_override_that_contradicts_the_recipe_is_said_to():
    assert refused(None, ["data.class_weights=balanced"], task="stsb") == (
        "error: 1 problem on the command line\n"
        "  command line with `--task stsb`  data.class_weights: regression has no classes"
    )


def test_two_overrides_that_contradict_one_another_leave_the_recipe_out_of_it():
    said = refused(None, ["trainer.bf16=true", "trainer.fp16=true"], task="sst2")
    assert said == "error: 1 problem on the command line\n  trainer.bf16: set bf16 or fp16, not both"


def test_a_line_of_the_recipe_that_an_override_makes_wrong_is_not_called_wrong_by_itself(write):
    path = write(PLAIN.replace("causal-lm", "text-classification") + 'label_names = ["a", "b"]\n')
    assert refused(path, ["data.problem_type=regression"]) == (
        "error: 1 problem on the command line\n  command line with line 8  data.label_names: regression has no classes"
    )


def test_mistakes_of_both_are_in_both(write):
    path = write(PLAIN + "blok_size = 1\n")
    assert refused(path, ["trainer.lr=3"]).startswith(f"error: 2 problems in `{path}` and on the command line\n")


def test_a_recipe_of_the_other_command_is_named_as_the_user_named_it():
    assert refused(None, ["data.path=a b"], task="bert-base", verb="finetune") == (
        "error: `--task bert-base` is for masked-lm\nhint: llmkit pretrain bert-base 'data.path=a b'"
    )
