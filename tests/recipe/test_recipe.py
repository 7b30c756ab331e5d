"""Recipes are strict, complete in their complaints, and frozen."""

import glob
import shutil
import subprocess
import sys
import time
import tomllib
from importlib.metadata import version

import pytest
from pydantic import ValidationError

from llmkit import recipe
from llmkit.errors import UserError
from llmkit.recipe import cleaning, data_tables, schema
from llmkit.recipe.table import Table
from llmkit.recipe.toml import key_lines, leaves, toml_value

BUILT = (
    "causal-lm, masked-lm, denoising, replaced-token-detection, text-classification, question-answering, "
    "token-classification, multiple-choice, seq2seq, chat and multi-task"
)
PLAIN = """\
task = "causal-lm"

[model]
name = "openai-community/gpt2"

[data]
path = "org/corpus"
"""
MASKED = PLAIN.replace("causal-lm", "masked-lm")
SCRATCH = """\
task = "causal-lm"
[model]
config = { model_type = "gpt2", n_layer = 2 }
[tokenizer]
type = "characters"
[data]
path = "org/corpus"
"""
SOURCES = """\
task = "causal-lm"
[model]
name = "openai-community/gpt2"
[data]
block_size = 8
[data.sources.web]
path = "org/web"
name = "en"
weight = 3
[data.sources.books]
path = "org/books"
"""
DENOISING = PLAIN.replace("causal-lm", "denoising")
REPLACED = PLAIN.replace("causal-lm", "replaced-token-detection")
TRANSFORMERS = f"transformers {version('transformers').rpartition('.')[0]}"  # 5.23, not 5.23.0
TRAINING = f"not a field of TrainingArguments in {TRANSFORMERS}"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a recipe; the working directory is another folder than the recipe's."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def write_recipe(text, name="r.toml"):
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return str(file)

    return write_recipe


def problems(path, *overrides):
    with pytest.raises(UserError) as caught:
        recipe.load(path, overrides)
    count = len(caught.value.details)
    assert caught.value.message == f"{count} problem{'s' if count > 1 else ''} in `{path}`"
    return list(caught.value.details)


# --- what is read -----------------------------------------------------------------------------------------------------


def test_a_recipe_and_its_defaults(write):
    read = recipe.load(write(PLAIN + "block_size = 128\n[trainer]\nlearning_rate = 6e-4\n", "my run.toml"))
    assert (read.task, read.name, read.model.name, read.model.init) == (
        "causal-lm",
        "my-run",
        "openai-community/gpt2",
        "pretrained",
    )
    assert (read.data.path, read.data.block_size, read.data.split) == ("org/corpus", 128, "train")
    assert dict(read.trainer) == {"learning_rate": 6e-4, **schema.TRAINER_DEFAULTS}
    assert read.lora is None
    assert read.early_stopping is None
    assert read.source is not None
    assert read.source.name == "my run.toml"
    assert read.origins["data.block_size"] == "recipe line 8"
    assert read.origins["trainer.learning_rate"] == "recipe line 10"
    assert read.origins["trainer.logging_steps"] == "default"
    assert read.origins["data.split"] == "default"


def test_llmkits_default_never_beats_the_recipe(write):
    read = recipe.load(write(PLAIN + "[trainer]\nlogging_steps = 500\n"))
    assert read.trainer["logging_steps"] == 500


def test_the_data_table_is_the_tasks(write):
    read = recipe.load(write(MASKED + "mlm_probability = 0.3\n"))
    assert isinstance(read.data, data_tables.MaskedData)
    assert (read.data.mlm_probability, read.data.mask_replace_prob) == (0.3, 0.8)
    assert type(recipe.load(write(PLAIN)).data) is data_tables.CausalData


def test_sources_have_weights_and_descriptions_of_their_own(write):
    read = recipe.load(write(SOURCES + "[data.sources.books.clean]\nrepair = true\n"))
    web, books = read.data.sources["web"], read.data.sources["books"]
    assert (web.path, web.name, web.weight, web.clean) == ("org/web", "en", 3, None)
    assert (books.path, books.name, books.weight, books.clean.repair) == ("org/books", None, 1, True)
    assert read.origins["data.sources.web.weight"] == "recipe line 9"
    assert read.origins["data.sources.books.weight"] == "default"
    assert read.origins["data.sources.books.clean.repair"] == "recipe line 13"
    named = read.data.named_sources()
    assert {name: (data.path, data.name, data.block_size, weight) for name, (data, weight) in named.items()} == {
        "web": ("org/web", "en", 8, 3),
        "books": ("org/books", None, 8, 1),
    }


def test_without_a_name_the_model_is_from_scratch(write):
    read = recipe.load(write(SCRATCH))
    assert (read.model.init, read.origins["model.init"]) == ("scratch", "default")
    assert read.tokenizer.vocab_size == 32_000


def test_an_empty_lora_table_asks_for_an_adapter(write):
    read = recipe.load(write(PLAIN + "[lora]\n"))
    assert dict(read.lora) == {}
    assert "[lora]" in read.to_toml()


@pytest.mark.parametrize(
    ("file", "name"), [("..toml", "run"), ("a b/c..toml", "c"), ("gpt2-small/recipe.toml", "gpt2-small")]
)
def test_the_name_cannot_leave_the_runs_folder(write, tmp_path, file, name):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    assert recipe.load(write(PLAIN, file)).name == name


def test_a_deprecated_field_is_taken_with_a_note(write):
    read = recipe.load(write(PLAIN + "[trainer]\ngradient_checkpointing = true\n"))
    assert read.trainer["gradient_checkpointing"] is True
    assert read.notes == (
        "trainer.gradient_checkpointing: Deprecated alias of `activation_checkpointing`, will be removed in v6. "
        f"({TRANSFORMERS})",
    )


# --- what is refused --------------------------------------------------------------------------------------------------


def test_every_mistake_at_once_in_file_order_then_the_command_line(write):
    path = write(
        'task = "causal-lm"\n[trainer]\nwarmup_ratio = 0.03\n[data]\nblok_size = 1024\npath = "org/corpus"\n'
        '[model]\nname = "openai-community/gpt2"\nrevision = 3\n[trainr]\nx = 1\n'
    )
    assert problems(path, "trainer.lerning_rate=1", "data.streaming=True") == [
        f"line 3        trainer.warmup_ratio: {TRAINING}; use `warmup_steps = 0.03`",
        "line 5        data.blok_size: unknown key, did you mean `block_size`?",
        "line 9        model.revision: must be a string, not 3",
        "line 10       trainr: unknown table, did you mean [trainer]?",
        f"command line  trainer.lerning_rate: {TRAINING}, did you mean `learning_rate`?",
        "command line  data.streaming: must be true or false, not True",
    ]


def test_the_shape_of_the_message(write):
    path = write(PLAIN.replace("[model]", "\n[model]") + "blok_size = 1\n\n[trainer]\nwarmup_ratio = 0.03\n")
    with pytest.raises(UserError) as caught:
        recipe.load(path)
    assert str(caught.value) == (
        f"error: 2 problems in `{path}`\n"
        "  line 9   data.blok_size: unknown key, did you mean `block_size`?\n"
        f"  line 12  trainer.warmup_ratio: {TRAINING}; use `warmup_steps = 0.03`"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # the task
        (PLAIN.replace("causal-lm", "causal_lm"), 'line 1  task: "causal_lm" is no task, did you mean "causal-lm"?'),
        (
            PLAIN.replace("causal-lm", "denoisin"),
            'line 1  task: "denoisin" is no task, did you mean "denoising"?',
        ),
        (
            PLAIN.replace('"causal-lm"', "1"),
            f"line 1  task: must be one of {BUILT}",
        ),
        (
            PLAIN.replace("task =", "# task ="),
            f"recipe  task: required, one of {BUILT}",
        ),
        # unknown keys
        (
            PLAIN + "learning_rate = 1\n",
            "line 8  data.learning_rate: unknown key, did you mean `trainer.learning_rate`?",
        ),
        ("seed = 1\n" + PLAIN, "line 1  seed: unknown key, did you mean `trainer.seed`?"),
        (
            PLAIN + "[lora]\nbais = 'all'\n",
            "line 9  lora.bais: not a field of LoraConfig in peft 0.21, did you mean `bias`?",
        ),
        (
            PLAIN + "[generation]\ntemprature = 1\n",
            f"line 9  generation.temprature: not a field of GenerationConfig in {TRANSFORMERS}, "
            "did you mean `temperature`?",
        ),
        (
            PLAIN + "[early_stopping]\nzzz = 1\n[trainer]\neval_strategy = 'steps'\nmetric_for_best_model = 'loss'\n",
            "line 9  early_stopping.zzz: unknown key; [early_stopping] has early_stopping_patience, "
            "early_stopping_threshold",
        ),
        (
            PLAIN + "mlm_probability = 0.1\n",
            "line 8  data.mlm_probability: belongs to the task masked-lm, and this is causal-lm",
        ),
        (
            MASKED + "[generation]\ntop_k = 1\n",
            "line 8  generation: belongs to the tasks that write: causal-lm, denoising, seq2seq, chat",
        ),
        # the run's own
        (
            PLAIN + "[trainer]\ndo_train = true\n",
            "line 9  trainer.do_train: set by the run itself; the command decides what runs",
        ),
        (
            PLAIN + "[trainer]\noutput_dir = 'x'\n",
            "line 9  trainer.output_dir: set by the run itself; use the top-level `output_dir` or `--output-dir`",
        ),
        # types
        (PLAIN + 'block_size = "1024"\n', 'line 8  data.block_size: must be an integer, not the string "1024"'),
        (PLAIN + "block_size = 8.0\n", "line 8  data.block_size: must be an integer, not 8.0"),
        (PLAIN + "block_size = true\n", "line 8  data.block_size: must be an integer, not true"),
        (PLAIN + "validation_fraction = false\n", "line 8  data.validation_fraction: must be a number, not false"),
        (
            PLAIN + "data_files = 3\n",
            "line 8  data.data_files: must be a string or an array of strings or a table, not 3",
        ),
        (PLAIN + "text_column = 2020-01-01\n", "line 8  data.text_column: must be a string, not a date"),
        ("output_dir = 1\n" + PLAIN, "line 1  output_dir: must be a string, not 1"),
        (PLAIN + "[trainer]\nseed = 1.0\n", "line 9  trainer.seed: must be an integer, not 1.0"),
        (PLAIN + "[trainer]\nbf16 = 1\n", "line 9  trainer.bf16: must be true or false, not 1"),
        (
            PLAIN + "[lora]\ntarget_modules = [1]\n",
            "line 9  lora.target_modules: must be a string or an array of strings, not the array [1]",
        ),
        (PLAIN + "[generation]\ntop_k = 'x'\n", 'line 9  generation.top_k: must be an integer, not the string "x"'),
        ("lora = 3\n" + PLAIN, "line 1  lora: must be a table, not 3"),
        (
            SCRATCH.replace('"characters"', '"characters"\nspecial_tokens = { eos_token = 3 }'),
            "line 6  tokenizer.special_tokens.eos_token: must be a string, not 3",
        ),
        # values
        (
            PLAIN.replace("[data]", 'init = "scrach"\n[data]'),
            'line 6  model.init: "scrach" is not one of its values, did you mean "scratch"?',
        ),
        (
            PLAIN + 'sample_by = "x"\n',
            'line 8  data.sample_by: must be one of "document", "paragraph", "line", not the string "x"',
        ),
        (
            PLAIN + "[trainer]\noptim = 'adamw_torch_fusd'\n",
            'line 9  trainer.optim: "adamw_torch_fusd" is not one of its values, did you mean "adamw_torch_fused"?',
        ),
        (
            PLAIN + "[trainer]\neval_strategy = 'x'\n",
            'line 9  trainer.eval_strategy: must be one of "no", "steps", "epoch", not the string "x"',
        ),
        (PLAIN + "block_size = 1\n", "line 8  data.block_size: must be at least 2, not 1"),
        (PLAIN + "validation_fraction = 1.0\n", "line 8  data.validation_fraction: must be below 1, not 1.0"),
        (MASKED + "mlm_probability = 0\n", "line 8  data.mlm_probability: must be above 0, not 0"),
        (MASKED + "random_replace_prob = -1\n", "line 8  data.random_replace_prob: must be at least 0, not -1"),
        (PLAIN + 'encoding = "utf-9"\n', 'line 8  data.encoding: Python knows no encoding "utf-9"'),
        (PLAIN.replace("org/corpus", ""), "line 7  data.path: must not be empty"),
        # what is missing
        (
            PLAIN.replace("path", "# path"),
            "line 6  data.path: required: a Hub id, a file, a folder or a glob; or [data.sources.NAME], several",
        ),
        (
            PLAIN.replace("name", "# name"),
            "line 3  model.name: required; or `model.config.model_type` for an architecture of your own",
        ),
        (
            SCRATCH.replace("type =", "# type =", 2).replace("model_# type", "model_type").replace("[tokenizer]\n", ""),
            "recipe  tokenizer: without `model.name` it needs `tokenizer.name`, or `tokenizer.type` to train one",
        ),
        # what excludes one another
        (
            PLAIN.replace("[data]", "config.model_type = 'bert'\n[data]"),
            "line 6  model.config.model_type: leave it out: `model.name` decides the architecture",
        ),
        (
            SCRATCH.replace("[tokenizer]", 'init = "pretrained"\n[tokenizer]'),
            'line 4  model.init: pretrained weights need `model.name`; without it `init` is "scratch"',
        ),
        (SCRATCH + "[lora]\n", "line 8  lora: an adapter needs pretrained weights, and `model.init` is scratch"),
        (
            SCRATCH.replace("[data]", 'name = "gpt2"\n[data]'),
            "line 5  tokenizer.type: `name` and `type` exclude one another: a tokenizer that exists, or a new one",
        ),
        (
            PLAIN + '[tokenizer]\ntype = "unigram"\n',
            'line 9  tokenizer.type: a new tokenizer does not fit pretrained weights; set `model.init = "scratch"`',
        ),
        (
            PLAIN + "[tokenizer]\nvocab_size = 9\n",
            "line 9  tokenizer.vocab_size: only for a tokenizer that is trained; set `tokenizer.type`, or leave it out",
        ),
        (
            SCRATCH.replace("[data]", 'special_tokens = { eos = "x" }\n[data]'),
            "line 6  tokenizer.special_tokens.eos: unknown key, did you mean `eos_token`?",
        ),
        (
            PLAIN + 'validation_from = "end"\n',
            "line 8  data.validation_from: needs `data.validation_fraction`: how much of the end",
        ),
        (
            PLAIN + 'validation_from = "end"\nvalidation_fraction = 0.1\nstreaming = true\n[trainer]\nmax_steps = 9\n',
            "line 8  data.validation_from: the end of a stream is not known; hold out documents instead",
        ),
        (
            PLAIN + "streaming = true\n",
            "line 8  data.streaming: needs `trainer.max_steps` (with --max-time any number): the length of a stream is "
            "not known",
        ),
        (
            MASKED + "mask_replace_prob = 0.8\nrandom_replace_prob = 0.3\n",
            "line 9  data.random_replace_prob: mask_replace_prob and random_replace_prob add up to 1.1, more than 1",
        ),
        (PLAIN + "[trainer]\nbf16 = true\nfp16 = true\n", "line 10  trainer.fp16: bf16 and fp16 exclude one another"),
        # several sources
        (SOURCES + "wieght = 2\n", "line 12  data.sources.books.wieght: unknown key, did you mean `weight`?"),
        (
            SOURCES + "block_size = 2\n",
            "line 12  data.sources.books.block_size: unknown key, did you mean `data.block_size`?",
        ),
        (
            SOURCES + "zzz = 2\n",
            "line 12  data.sources.books.zzz: unknown key; [data.sources.books] has path, name, revision, data_files, "
            "split, encoding, validation_split, text_column, sample_by, clean, weight",
        ),
        (SOURCES.replace("= 3", '= "3"'), 'line 9  data.sources.web.weight: must be a number, not the string "3"'),
        (SOURCES.replace("= 3", "= 0"), "line 9  data.sources.web.weight: must be above 0, not 0"),
        (
            SOURCES + 'encoding = "utf-9"\n',
            'line 12  data.sources.books.encoding: Python knows no encoding "utf-9"',
        ),
        (
            SOURCES.replace('path = "org/web"', ""),
            "line 6  data.sources.web.path: required: a Hub id, a file, a folder or a glob",
        ),
        (SOURCES.replace("org/web", ""), "line 7  data.sources.web.path: must not be empty"),
        (
            PLAIN.replace('path = "org/corpus"', 'sources = { a = "org/a", b = { path = "org/b" } }'),
            'line 7  data.sources.a: must be a table, not the string "org/a"',
        ),
        (
            SOURCES.replace("[data]", '[data]\npath = "org/all"'),
            "line 7  data.sources: in place of `data.path`, not beside it: one source is no mixture",
        ),
        (SOURCES.partition("[data.sources.books]")[0], "line 6  data.sources: a mixture has two sources at least"),
        (
            SOURCES.replace("block_size = 8", "streaming = true") + "[trainer]\nmax_steps = 9\n",
            "line 5  data.streaming: sources are mixed by what they hold, which of a stream is not known",
        ),
        *(
            (
                SOURCES.replace("block_size = 8", said),
                f"line 5  data.{said.split()[0]}: each source has its own, [data.sources.NAME]",
            )
            for said in ('split = "x"', 'text_column = "x"', 'sample_by = "line"', 'encoding = "latin-1"', 'name = "x"')
        ),
        (
            SOURCES.replace("block_size = 8", "max_train_samples = 8"),
            "line 5  data.max_train_samples: a mixture ends with the run; a source has `split`, such as train[:5%]",
        ),
        (
            SOURCES.replace("sources.books", 'sources."my books"'),
            'line 10  data.sources."my books": its figures bear this name: letters, digits, - and _ only',
        ),
        (
            SOURCES.replace("causal-lm", "chat").replace("block_size = 8", 'path = "org/all"'),
            "line 6  data.sources: belongs to the task causal-lm, and this is chat",
        ),
        # cleaning
        (PLAIN + "[data.clean]\nrepare = true\n", "line 9  data.clean.repare: unknown key, did you mean `repair`?"),
        (PLAIN + "clean = true\n", "line 8  data.clean: must be a table, not true"),
        (
            PLAIN + '[data.clean]\nmin_words = "3"\n',
            'line 9  data.clean.min_words: must be an integer, not the string "3"',
        ),
        (PLAIN + "[data.clean]\nmin_words = 0\n", "line 9  data.clean.min_words: must be at least 1, not 0"),
        (
            PLAIN + "[data.clean]\nnear_duplicates = true\nnear_threshold = 0.1\n",
            "line 10  data.clean.near_threshold: must be at least 0.3, not 0.1",
        ),
        (
            PLAIN + "[data.clean]\nnear_threshold = 0.7\n",
            "line 9  data.clean.near_threshold: means nothing without `near_duplicates`",
        ),
        (
            PLAIN + "[data.clean]\nlanguages = ['english']\n",
            'line 9  data.clean.languages: "english" is no ISO 639-1 code such as "en" or "zh"',
        ),
        (
            SOURCES + "[data.sources.books.clean]\nrepair = true\nrepare = true\n",
            "line 14  data.sources.books.clean.repare: unknown key, did you mean `repair`?",
        ),
        (
            SOURCES + "clean = { min_words = 0 }\n",
            "line 12  data.sources.books.clean.min_words: must be at least 1, not 0",
        ),
        (
            SOURCES + "[data.sources.books.clean]\nnear_ngram = 3\n",
            "line 13  data.sources.books.clean.near_ngram: means nothing without `near_duplicates`",
        ),
        # denoising
        *(
            (
                text,
                f"line {line}  data.corruption: which? Give a weight to `permutation`, `infilling` or "
                "`span_corruption`, such as data.corruption.span_corruption=1",
            )
            for text, line in (
                (DENOISING, 6),
                (DENOISING + "[data.corruption]\n", 8),
                (DENOISING + "corruption.infilling = 0\n", 8),
                (DENOISING + '[data.corruption]\npermute = "tokens"\n', 8),
            )
        ),
        (
            DENOISING + "[data.corruption]\npermutaton = 1\n",
            "line 9  data.corruption.permutaton: unknown key, did you mean `permutation`?",
        ),
        (
            DENOISING + "[data.corruption]\ninfilling = 1\nmask_probability = 1.0\n",
            "line 10  data.corruption.mask_probability: must be below 1, not 1.0",
        ),
        (
            PLAIN + "[data.corruption]\npermutation = 1\n",
            "line 8  data.corruption: belongs to the task denoising, and this is causal-lm",
        ),
        # replaced tokens
        *(
            (
                PLAIN.replace("causal-lm", task) + "[model.generator]\nname = 'org/small'\n",
                f"line 8  model.generator: belongs to the task replaced-token-detection, and this is {task}",
            )
            for task in ("causal-lm", "masked-lm", "text-classification", "chat")
        ),
        (
            REPLACED + "[model.generator]\nnam = 'org/small'\n",
            "line 9  model.generator.nam: unknown key, did you mean `name`?",
        ),
        (
            REPLACED + "[generation]\ntop_k = 1\n",
            "line 8  generation: belongs to the tasks that write: causal-lm, denoising, seq2seq, chat",
        ),
        # tokens that are added
        *(
            (
                SCRATCH.replace("causal-lm", task).replace("[data]", f"{said}\n[data]"),
                f"line 6  tokenizer.{said.split()[0]}: extends a tokenizer that exists; one that is trained has "
                "tokenizer.vocab_size",
            )
            for task in ("causal-lm", "text-classification")
            for said in ('add_tokens = ["x"]', "add_from_text = 9")
        ),
        (
            PLAIN + '[tokenizer]\nadd_tokens = ["x", 3]\n',
            'line 9  tokenizer.add_tokens: must be an array of strings, not the array ["x", 3]',
        ),
        (PLAIN + "[tokenizer]\nadd_from_text = 0\n", "line 9  tokenizer.add_from_text: must be at least 1, not 0"),
        (
            PLAIN + "[early_stopping]\n[trainer]\nload_best_model_at_end = true\n",
            'line 8  early_stopping: needs `trainer.eval_strategy = "steps"` or "epoch": it looks at evaluations',
        ),
        (
            PLAIN + "[early_stopping]\n[trainer]\neval_strategy = 'steps'\n",
            "line 8  early_stopping: needs `trainer.metric_for_best_model` or `trainer.load_best_model_at_end = true`",
        ),
    ],
)
def test_each_mistake(write, text, message):
    assert problems(write(text)) == [message]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'task = "causal-lm"\n[model\n',
            " line 2, column 7: not TOML: Expected ']' at the end of a table declaration",
        ),
        (b"a = 1\na = 2\n", " line 2, column 6: not TOML: Cannot overwrite a value"),
        (b"a = [1,", " line 1, the end: not TOML: Invalid value"),
        (b'a = 1\nb = "\xe9"\n', " line 2: not UTF-8 (invalid continuation byte)"),
    ],
)
def test_a_file_that_is_no_toml(tmp_path, content, message):
    file = tmp_path / "r.toml"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        recipe.load(str(file))
    assert caught.value.message.removeprefix(f"`{file}`") == message


# --- finding it -------------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package that carries recipes, as a wheel does, and an empty working directory."""
    package, here = tmp_path / "site" / "llmkit", tmp_path / "here"
    (package / "recipes" / "tiny").mkdir(parents=True)
    here.mkdir()
    for name in ("gpt2-small", "tiny/gpt2"):
        (package / "recipes" / f"{name}.toml").write_text(PLAIN)
    monkeypatch.setattr(recipe, "_PACKAGE", package)
    monkeypatch.chdir(here)
    return package


def test_bundled_recipes_by_name(installed):
    assert list(recipe.bundled()) == ["gpt2-small", "tiny/gpt2"]
    for name in ("tiny/gpt2", "tiny/gpt2.toml", "recipes/tiny/gpt2.toml"):
        assert recipe.load(name).source == installed / "recipes" / "tiny" / "gpt2.toml"


def test_in_a_checkout_the_recipes_stand_beside_the_package(installed):
    shutil.move(installed / "recipes", installed.parent / "recipes")
    assert recipe.load("gpt2-small").source == installed.parent / "recipes" / "gpt2-small.toml"


def test_a_file_beats_a_bundled_recipe(installed, tmp_path):
    (tmp_path / "here" / "gpt2-small").write_text(MASKED)
    assert recipe.load("gpt2-small").task == "masked-lm"


@pytest.mark.parametrize(
    ("name", "near"), [("gpt2-smal", "gpt2-small"), ("recipes/tiny/gpt3.toml", "tiny/gpt2"), ("gpt2", "tiny/gpt2")]
)
def test_a_name_that_is_neither(installed, name, near):
    with pytest.raises(UserError) as caught:
        recipe.load(name)
    assert caught.value.message == f"`{name}` is neither a file nor a recipe that comes with llmkit"
    assert caught.value.hint.startswith(f"did you mean `{near}`? ")


def test_a_folder_is_no_recipe(installed):
    with pytest.raises(UserError, match="is a folder, not a recipe"):
        recipe.load(".")


# --- overrides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("model.name=org/name", lambda r: r.model.name, "org/name"),
        ("data.split=train[:4000]", lambda r: r.data.split, "train[:4000]"),
        ("data.text_column=3", lambda r: r.data.text_column, "3"),
        ("data.text_column=a=b", lambda r: r.data.text_column, "a=b"),
        ("data.sample_by=line", lambda r: r.data.sample_by, "line"),
        ("data.block_size=1_024", lambda r: r.data.block_size, 1024),
        ("data.validation_fraction=0", lambda r: r.data.validation_fraction, 0.0),
        ("model.trust_remote_code=true", lambda r: r.model.trust_remote_code, True),
        ("model.config.n_layer=2", lambda r: r.model.config["n_layer"], 2),
        ('model.config.act="gelu"', lambda r: r.model.config["act"], "gelu"),
        ("model.config={ n_layer = 3 }", lambda r: dict(r.model.config), {"n_layer": 3}),
        ("trainer.learning_rate=1e-4", lambda r: r.trainer["learning_rate"], 1e-4),
        ("trainer.eval_strategy=epoch", lambda r: r.trainer["eval_strategy"], "epoch"),
        ("trainer.report_to=wandb", lambda r: r.trainer["report_to"], "wandb"),
        ('trainer.report_to=["wandb"]', lambda r: r.trainer["report_to"], ["wandb"]),
        ("trainer.run_name=true", lambda r: r.trainer["run_name"], "true"),
        ("trainer.include_num_input_tokens_seen=true", lambda r: r.trainer["include_num_input_tokens_seen"], True),
        ("trainer.include_num_input_tokens_seen=all", lambda r: r.trainer["include_num_input_tokens_seen"], "all"),
        ("trainer.lr_scheduler_kwargs.min_lr=1e-4", lambda r: r.trainer["lr_scheduler_kwargs"], {"min_lr": 1e-4}),
        ("lora.r=8", lambda r: dict(r.lora), {"r": 8}),
        ('lora.rank_pattern."^a.b"=4', lambda r: r.lora["rank_pattern"], {"^a.b": 4}),
        ("output_dir=runs/x", lambda r: r.output_dir, "runs/x"),
        ("task=masked-lm", lambda r: r.data.mlm_probability, 0.15),
    ],
)
def test_an_override(write, override, get, value):
    read = recipe.load(write(PLAIN), [override])
    assert get(read) == value
    assert type(get(read)) is type(value)
    assert "command line" in dict(read.origins).values()


def test_precedence(write):
    path = write('output_dir = "a"\n' + PLAIN + "[trainer]\nseed = 1\ndata_seed = 2\n")
    read = recipe.load(path, ["trainer.seed=3", "trainer.seed=4", "output_dir=b"], output_dir="c")
    assert (read.output_dir, read.trainer["seed"], read.trainer["data_seed"]) == ("c", 4, 2)
    assert [read.origins[key] for key in ("output_dir", "trainer.seed", "trainer.data_seed")] == [
        "command line",
        "command line",
        "recipe line 11",
    ]


def test_a_tables_other_keys_survive_an_override(write):
    path = write(PLAIN.replace("[data]", "config = { a = 1, b = { c = 2, d = 3 } }\n[data]"))
    read = recipe.load(path, ["model.config.b.c=9"])
    assert dict(read.model.config) == {"a": 1, "b": {"c": 9, "d": 3}}
    assert (read.origins["model.config.b.c"], read.origins["model.config.b.d"]) == ("command line", "recipe line 6")


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("data.block_size=", lambda r: r.data.block_size, None),
        ("trainer.logging_steps=", lambda r: r.trainer["logging_steps"], 10),
        ("trainer.seed=", lambda r: "seed" in r.trainer, False),
        ("model.config.a=", lambda r: dict(r.model.config), {"b": 1}),
        ("lora=", lambda r: r.lora, None),
    ],
)
def test_nothing_behind_the_equals_sign_unsets(write, override, get, value):
    text = PLAIN.replace("[data]", "config = { a = 1, b = 1 }\n[data]")
    path = write(text + "block_size = 8\n[trainer]\nseed = 1\nlogging_steps = 3\n[lora]\nr = 4\n")
    assert get(recipe.load(path)) != value
    read = recipe.load(path, [override])
    assert get(read) == value
    assert read.origins.get(override[:-1], "default") == "default"


def test_another_data_path_drops_what_described_the_first(write):
    path = write(
        PLAIN + 'name = "n"\nsplit = "all"\nvalidation_split = "v"\ndata_files = "f"\nrevision = "r"\nblock_size = 8\n'
    )
    read = recipe.load(path, ["data.name=m", "data.path=org/other"])
    assert (read.data.path, read.data.name, read.data.block_size) == ("org/other", "m", 8)
    assert (read.data.split, read.data.validation_split, read.data.data_files, read.data.revision) == (
        "train",
        None,
        None,
        None,
    )
    assert read.notes == (
        "data.path is from the command line, so the recipe's data.name, data.revision, data.split, data.data_files, "
        "data.validation_split no longer counts",
    )


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("data.sources.web.weight=2", lambda d: d.sources["web"].weight, 2.0),
        ("data.sources.web.weight=", lambda d: d.sources["web"].weight, 1.0),
        ("data.sources.web.split=train[:9]", lambda d: d.sources["web"].split, "train[:9]"),
        ("data.sources.web.clean.repair=true", lambda d: d.sources["web"].clean.repair, True),
        ("data.sources.new.path=org/new", lambda d: list(d.sources), ["web", "books", "new"]),
        ("data.clean.repair=true", lambda d: d.clean.repair, True),
        ("data.clean.stop_words=en", lambda d: d.clean.stop_words, "en"),
        ('data.clean.languages=["en"]', lambda d: d.clean.languages, ("en",)),
        ("data.path=org/corpus", lambda d: (d.path, dict(d.sources)), ("org/corpus", {})),
    ],
)
def test_an_override_of_sources_and_cleaning(write, override, get, value):
    read = recipe.load(write(SOURCES), [override])
    assert get(read.data) == value
    assert type(get(read.data)) is type(value)
    assert ("command line" in dict(read.origins).values()) is (override[-1] != "=")


def test_another_data_path_drops_the_sources(write):
    path = write(SOURCES + "[data.clean]\nrepair = true\n")
    read = recipe.load(path, ["data.path=org/corpus"])
    assert (read.data.path, dict(read.data.sources)) == ("org/corpus", {})
    assert (read.data.block_size, read.data.clean.repair) == (8, True)
    assert read.notes == ("data.path is from the command line, so the recipe's data.sources no longer counts",)


def test_another_path_of_a_source_drops_what_described_the_first(write):
    read = recipe.load(write(SOURCES), ["data.sources.web.path=org/other"])
    web, books = read.data.sources["web"], read.data.sources["books"]
    assert (web.path, web.name, web.weight, books.path) == ("org/other", None, 3, "org/books")
    assert read.notes == (
        "data.sources.web.path is from the command line, so the recipe's data.sources.web.name no longer counts",
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sources.web.wieght=2", "data.sources.web.wieght: unknown key, did you mean `weight`?"),
        ("data.sources.web.weight=x", "data.sources.web.weight: must be a number, not x"),
        ("data.sources.web.weight=0", "data.sources.web.weight: must be above 0, not 0"),
        (
            "data.sources.web.weight",
            "data.sources.web.weight: not an override, write `data.sources.web.weight=VALUE`",
        ),
        ("data.sourcs.web.weight=2", "data.sourcs: unknown key, did you mean `sources`?"),
        (
            "data.sources.new.weight=2",
            "data.sources.new.path: required: a Hub id, a file, a folder or a glob",
        ),
        ("data.sources.web.clean.repare=true", "data.sources.web.clean.repare: unknown key, did you mean `repair`?"),
        ("data.clean.repare=true", "data.clean.repare: unknown key, did you mean `repair`?"),
        ("data.clean.min_words=0", "data.clean.min_words: must be at least 1, not 0"),
        ("data.clean.min_word", "data.clean.min_word: not an override, write `data.clean.min_words=VALUE`"),
    ],
)
def test_a_mistaken_override_of_sources_and_cleaning(write, override, message):
    assert problems(write(SOURCES), override) == [f"command line  {message}"]


def test_a_table_given_whole_replaces_the_recipes(write):
    assert problems(write(PLAIN), 'model={ revision = "main" }') == [
        "command line  model.name: required; or `model.config.model_type` for an architecture of your own"
    ]


def test_an_override_mends_the_recipe(write):
    path = write(PLAIN + 'block_size = "x"\n')
    assert recipe.load(path, ["data.block_size=4"]).data.block_size == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("foo", "foo: not an override, write `TABLE.KEY=VALUE`"),
        ("trainer.max_step", "trainer.max_step: not an override, write `trainer.max_steps=VALUE`"),
        ("=3", "=3: not an override, write `TABLE.KEY=VALUE`"),
        ("dat.path=x", "dat: unknown table, did you mean [data]?"),
        ("learning_rate=3", "learning_rate: unknown key, did you mean `trainer.learning_rate`?"),
        ("data.blok_size=3", "data.blok_size: unknown key, did you mean `block_size`?"),
        ("data.blok_size=", "data.blok_size: unknown key, did you mean `block_size`?"),
        ("trainer.warmup_ratio=0.1", f"trainer.warmup_ratio: {TRAINING}; use `warmup_steps = 0.1`"),
        ("trainer.max_steps=10k", "trainer.max_steps: must be an integer, not 10k"),
        ("trainer.max_steps=1.5", "trainer.max_steps: must be an integer, not 1.5"),
        ("trainer.max_steps=1\nseed=2", "trainer.max_steps: must be an integer, not 1\nseed=2"),
        ("trainer.bf16=True", "trainer.bf16: must be true or false, not True"),
        ("trainer.optim=adam", 'trainer.optim: "adam" is not one of its values, did you mean "adamw_torch"?'),
        (
            "trainer.eval_strategy=STEPS",
            'trainer.eval_strategy: "STEPS" is not one of its values, did you mean "steps"?',
        ),
        ("lora.r.x=8", "lora.r: must be an integer, not a table"),
        ("model=gpt2", 'model: must be a table, not the string "gpt2"'),
        (
            "model.config.act=gelu",
            "model.config.act: gelu is not TOML; a string is quoted for TOML, and all of it for the shell: "
            "'model.config.act=\"gelu\"'",
        ),
        (
            "lora.target_modules=[c_attn]",
            "lora.target_modules: [c_attn] is not TOML; quote strings for TOML, and all of it for the shell: "
            '\'lora.target_modules=["a", "b"]\'',
        ),
    ],
)
def test_a_mistaken_override(write, override, message):
    assert problems(write(PLAIN), override) == [f"command line  {message}"]


def test_a_refused_value_is_not_missing_as_well(write):
    found = problems(write(PLAIN + "streaming = true\n"), "trainer.max_steps=10k")
    assert found == ["command line  trainer.max_steps: must be an integer, not 10k"]
    assert problems(write("model = 3\n" + PLAIN.replace("[model]\nname", "#"))) == [
        "line 1  model: must be a table, not 3"
    ]


# --- paths ------------------------------------------------------------------------------------------------------------


def test_a_path_in_a_recipe_is_relative_to_the_recipe(write, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    (tmp_path / "model").mkdir()
    text = PLAIN.replace("openai-community/gpt2", "model")
    for written in ("texts", "./texts", "texts/a.txt", "texts/*.txt", "texts/../texts/a.txt", str(tmp_path / "texts")):
        read = recipe.load(write(text.replace("org/corpus", written)))
        assert read.data.path == str(tmp_path / written.replace("texts/../", ""))
        assert read.model.name == str(tmp_path / "model")


def test_a_path_on_the_command_line_is_relative_to_the_working_directory(write, tmp_path):
    (tmp_path / "a.txt").touch()
    (tmp_path / "here" / "b.txt").touch()
    path = write(PLAIN)
    assert recipe.load(path, ["data.path=b.txt"]).data.path == str(tmp_path / "here" / "b.txt")
    assert recipe.load(path, ["data.path=../a.txt"]).data.path == str(tmp_path / "a.txt")
    assert problems(path, "data.path=a.txt") == [
        f"command line  data.path: there is no file or folder {tmp_path}/here/a.txt, "
        "taken relative to the working directory"
    ]


@pytest.mark.parametrize("written", ["a.jsonl", "./a", "../a", "a/*.gz", "some/deep/folder", "corpus.CSV"])
def test_what_is_clearly_a_path_must_exist(write, tmp_path, written):
    what = "no file matches" if "*" in written else "there is no file or folder"
    absolute = {"./a": tmp_path / "a", "../a": tmp_path.parent / "a"}.get(written, tmp_path / written)
    assert problems(write(PLAIN.replace("org/corpus", written))) == [
        f"line 7  data.path: {what} {absolute}, taken relative to the recipe"
    ]
    assert problems(write(PLAIN.replace("org/corpus", "/no/such.txt"))) == [
        "line 7  data.path: there is no file or folder /no/such.txt"
    ]


def test_what_does_not_exist_is_a_hub_id(write, tmp_path):
    (tmp_path / "here" / "runs" / "first").mkdir(parents=True)
    read = recipe.load(write(PLAIN.replace("openai-community/gpt2", "runs/first")))
    assert (read.model.name, read.data.path) == ("runs/first", "org/corpus")
    assert len(read.notes) == 1
    assert read.notes[0].startswith("model.name: `runs/first` is taken as a Hub id; ")
    assert recipe.load(write(PLAIN), ["data.path=hf://datasets/a/b.txt"]).data.path == "hf://datasets/a/b.txt"


def test_a_glob_below_a_folder_with_brackets(tmp_path):
    folder = tmp_path / "a[1]"
    folder.mkdir()
    (folder / "x.txt").touch()
    (folder / "r.toml").write_text(PLAIN.replace("org/corpus", "*.txt"))
    assert glob.glob(recipe.load(str(folder / "r.toml")).data.path) == [str(folder / "x.txt")]  # noqa: PTH207


def test_data_files(write, tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "texts" / name).touch()
    local = PLAIN.replace("org/corpus", "texts")
    read = recipe.load(write(local + 'data_files = { train = "a.txt", validation = ["b.txt"] }\n'))
    assert dict(read.data.data_files) == {
        "train": str(tmp_path / "texts" / "a.txt"),
        "validation": [str(tmp_path / "texts" / "b.txt")],
    }
    assert recipe.load(write(local + 'data_files = ["texts/a.txt"]\n')).data.data_files == (
        str(tmp_path / "texts" / "a.txt"),
    )
    assert problems(write(local + 'data_files = { train = "c.txt" }\n')) == [
        f"line 8  data.data_files.train: there is no file or folder {tmp_path}/texts/c.txt, "
        "taken relative to the recipe"
    ]
    assert recipe.load(write(PLAIN + 'data_files = "a/*.parquet"\n')).data.data_files == "a/*.parquet"  # on the Hub


def test_the_path_of_a_source_is_relative_to_the_recipe(write, tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("texts/a.txt", "b.txt", "here/c.txt"):
        (tmp_path / name).touch()
    local = SOURCES.replace("org/web", "texts").replace('name = "en"', 'data_files = "a.txt"')
    read = recipe.load(write(local.replace("org/books", "*.txt")), ["data.sources.more.path=c.txt"])
    sources = read.data.sources
    assert sources["web"].data_files == str(tmp_path / "texts" / "a.txt")
    assert {name: source.path for name, source in sources.items()} == {
        "web": str(tmp_path / "texts"),
        "books": str(tmp_path / "*.txt"),
        "more": str(tmp_path / "here" / "c.txt"),
    }
    assert problems(write(SOURCES.replace("org/books", "c.txt"))) == [
        f"line 11  data.sources.books.path: there is no file or folder {tmp_path}/c.txt, taken relative to the recipe"
    ]


@pytest.mark.parametrize("key", ["stop_words", "c4_bad_words"])
def test_a_list_of_words_is_relative_to_the_recipe(write, tmp_path, key):
    (tmp_path / "words").touch()
    (tmp_path / "en").touch()
    text = f'{SOURCES}[data.clean]\nc4 = true\n{key} = "words"\n[data.sources.web.clean]\nc4 = true\n{key} = "words"\n'
    read = recipe.load(write(text))
    for table in (read.data.clean, read.data.sources["web"].clean):
        assert getattr(table, key) == str(tmp_path / "words")
    assert problems(write(text.replace('"words"\n[', '"wrds"\n['))) == [
        f"line 14  data.clean.{key}: there is no file or folder {tmp_path}/wrds, taken relative to the recipe"
    ]
    assert recipe.load(write(text), [f'data.clean.{key}=["a"]']).data.clean.model_dump()[key] == ("a",)
    assert recipe.load(write(PLAIN + 'clean.stop_words = "en"\n')).data.clean.stop_words == "en"  # a list of ours


# --- what comes out ---------------------------------------------------------------------------------------------------

FULL = """\
task = "masked-lm"
output_dir = "runs/x"
[model]
config = { model_type = "bert", r = 1e-5, big = 1e22, id2label = { 0 = "é \\" \\\\ \\n \\u007f" }, rows = [[]] }
[tokenizer]
type = "wordpiece"
special_tokens.pad_token = "[PAD]"
[data]
path = "*.txt"
data_files = { train = ["a.txt"] }
random_replace_prob = 0
[trainer]
learning_rate = 6e-4
report_to = ["wandb"]
eval_strategy = "steps"
load_best_model_at_end = true
bf16 = false
lr_scheduler_kwargs = {}
[early_stopping]
early_stopping_patience = 3
"""


@pytest.mark.parametrize("comments", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        *(PLAIN, MASKED, SCRATCH, FULL, PLAIN + '[lora]\nrank_pattern = { "^a.b$" = 4 }\n', PLAIN + "[lora]\n"),
        *(SOURCES, SOURCES.replace("org/books", "a.txt") + "[data.sources.books.clean]\nc4 = true\nmin_words = 3\n"),
        PLAIN + '[data.clean]\nrepair = true\nlanguages = ["en"]\nboilerplate_patterns = ["\\\\d+ \\"x\\""]\n',
        PLAIN + "[data.clean]\n",
        DENOISING + "[data.corruption]\npermutation = 1\nspan_corruption = 2.5\n",
        REPLACED + '[model.generator]\nname = "a.txt"\nconfig = { hidden_size = 64 }\n',
        PLAIN + '[tokenizer]\nadd_tokens = ["<|a|>", "é"]\nadd_from_text = 9\n',
    ],
)
def test_the_resolved_recipe_loads_again_from_anywhere(write, tmp_path, text, comments):
    (tmp_path / "a.txt").touch()
    read = recipe.load(write(text), ["trainer.seed=3"])
    (tmp_path / "else" / "where").mkdir(parents=True)
    again = recipe.load(write(read.to_toml(comments), "else/where/again.toml"))
    assert again == read
    assert again.to_toml() == read.to_toml()
    assert again != recipe.load(write(text), ["trainer.seed=4"])


def test_the_resolved_recipe_says_where_each_value_is_from(write, tmp_path):
    read = recipe.load(write(PLAIN + "[lora]\nr = 4\n"), ["model.config.n_layer=2", "data.block_size=8"])
    assert read.to_toml(comments=True) == (
        f'# resolved from "{tmp_path}/r.toml"\n'
        'task = "causal-lm"  # recipe line 1\n\n'
        '[model]\nname = "openai-community/gpt2"  # recipe line 4\ninit = "pretrained"  # default\n'
        "config.n_layer = 2  # command line\ntrust_remote_code = false  # default\n"
        'use_safetensors = true  # default\ntrain = "all"  # default\nload_in_4bit = false  # default\n\n'
        '[data]\npath = "org/corpus"  # recipe line 7\nsplit = "train"  # default\nencoding = "utf-8"  # default\n'
        'sample_by = "document"  # default\nstreaming = false  # default\nvalidation_from = "documents"  # default\n'
        'block_size = 8  # command line\npack = "running"  # default\n\n'
        "[trainer]\nlogging_first_step = true  # default\nlogging_steps = 10  # default\n"
        "save_total_limit = 2  # default\n\n[lora]\nr = 4  # recipe line 9\n\n"
        "[generation]\ndo_sample = true  # default\ntemperature = 0.8  # default\n"
        "top_p = 0.95  # default\nmax_new_tokens = 200  # default\n\n"
        "[guard]\nmax_skipped_steps = 5  # default\ndataloader_timeout = 600  # default\n\n"
        "[speed]\nfused_loss = true  # default\nskip_ignored = true  # default\n"
        "fast_dropout = true  # default\nreuse_memory = true  # default\n"
    )


def test_masked_keys_are_in_the_resolved_recipe(write):
    assert tomllib.loads(recipe.load(write(MASKED)).to_toml())["data"]["mask_replace_prob"] == 0.8


def test_a_recipe_cannot_be_changed(write):
    path = write(PLAIN + 'data_files = ["a"]\n[trainer]\nlr_scheduler_kwargs = { a = 1 }\n')
    read = recipe.load(path)
    for table, key in ((read, "task"), (read, "trainer"), (read.model, "name"), (read.data, "block_size")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(table, key, None)
    with pytest.raises(TypeError):
        read.trainer["seed"] = 1
    with pytest.raises(TypeError):
        read.data.data_files[0] = "b"
    read.trainer["lr_scheduler_kwargs"]["a"] = 2
    assert read == recipe.load(path)


def test_upstream_tables_unpack_into_plain_values(write):
    read = recipe.load(write(PLAIN + "[trainer]\nlr_scheduler_kwargs = { a = 1 }\nreport_to = ['wandb']\n"))
    plain = {**read.trainer}
    assert plain["lr_scheduler_kwargs"] == {"a": 1}
    assert type(plain["lr_scheduler_kwargs"]) is dict
    assert type(plain["report_to"]) is list


def test_our_tables_never_convert():
    for wrong in ({"block_size": "8"}, {"block_size": 8.0}, {"streaming": 1}, {"validation_fraction": True}):
        with pytest.raises(ValidationError):
            schema.Data(path="x", **wrong)
    with pytest.raises(ValidationError):
        schema.Data(path="x", blok_size=8)
    assert schema.Data(path="x", validation_fraction=0).validation_fraction == 0


def tables(task):
    """Our own tables of a task, with those that stand in them."""
    found = list(schema.own_tables(task).values())
    for table in found:
        found += [each for each in (*schema.nested(table).values(), *schema.named(table).values()) if each not in found]
    return found


def test_the_tables_that_stand_in_a_table_are_found():
    assert {data_tables.Source, cleaning.Clean, schema.Generator} <= set(tables("causal-lm"))
    assert data_tables.Corruption in tables("denoising")
    assert data_tables.Augment in tables("text-classification")


@pytest.mark.parametrize(
    "table", [*dict.fromkeys(table for task in schema.TASKS for table in tables(task)), schema.Recipe]
)
def test_every_field_is_documented_and_its_default_is_of_its_type(table):
    added = {"source", "name", "origins", "notes"} if table is schema.Recipe else set()
    for name, field in table.model_fields.items():
        assert name in added or field.description
    if table is not schema.Recipe:
        for name, kind in schema.field_types(table).items():
            default = table.model_fields[name].get_default()
            if not table.model_fields[name].is_required() and default is not None:
                assert kind.admits(dict(default) if isinstance(default, Table) else default), name
            assert "any" not in kind.kinds, name


# --- lines ------------------------------------------------------------------------------------------------------------

HAIRY = (
    '''\
# a = 1
top = """
[not] = "a header"
x = 1 \\""" still
"""""
"quoted key" = 'it''s' # c = 2
'''.replace("'it''s'", "'its # no comment'")
    + """\
a.b . "c.d" = { x = 1, y.z = [ 1, # { q = 1 }
  "]", '''
]
''',
  { inside = 1 },
], "w w" = 2 }
[ table ] # [other]
k = [ [1, 2], [
  3 ] ] # k2 = 1
when = 1979-05-27 07:32:00
[table."sub.table"]
lit = 'C:\\\\n'
n = -1_0.5e-3
m = \"\"\"one \\\\ ""two\"\"\"
[[array]]
first = 1
[[array]]
first = 2
[late]
"é\\u0041" = true
"""
)


def test_the_line_of_every_key_in_a_hairy_file():
    parsed = tomllib.loads(HAIRY)
    lines = key_lines(HAIRY)
    assert lines == {
        ("top",): 2,
        ("quoted key",): 6,
        ("a",): 7,
        ("a", "b"): 7,
        ("a", "b", "c.d"): 7,
        ("a", "b", "c.d", "x"): 7,
        ("a", "b", "c.d", "y"): 7,
        ("a", "b", "c.d", "y", "z"): 7,
        ("a", "b", "c.d", "w w"): 12,
        ("table",): 13,
        ("table", "k"): 14,
        ("table", "when"): 16,
        ("table", "sub.table"): 17,
        ("table", "sub.table", "lit"): 18,
        ("table", "sub.table", "n"): 19,
        ("table", "sub.table", "m"): 20,
        ("array",): 21,
        ("array", "first"): 22,
        ("late",): 25,
        ("late", "éA"): 26,
    }
    missed = {key for key in leaves(parsed) if key not in lines}
    assert missed == set()


@pytest.mark.parametrize(
    "value",
    [
        True,
        3,
        -1.5,
        1e-5,
        1e22,
        float("inf"),
        "",
        'a"b\\c\n\t\x00\x7f\u2028é',
        [],
        [1, "a", [True]],
        {},
        {"a b": {"": 1}},
    ],
)
def test_what_is_written_reads_back(value):
    assert tomllib.loads(f"v = {toml_value(value)}")["v"] == value


# --- what it costs ----------------------------------------------------------------------------------------------------

LOAD = """
import sys
from llmkit import recipe
from llmkit.errors import UserError
try:
    recipe.load(sys.argv[1])
except UserError as error:
    print(error)
print(sorted({"torch", "transformers", "peft", "numpy", "datasets", "accelerate"} & set(sys.modules)))
"""


@pytest.mark.alone
def test_a_misspelt_key_is_reported_in_half_a_second_without_torch(write):
    path = write(PLAIN + "[trainer]\nlerning_rate = 1\n[lora]\nbais = 1\n[generation]\ntemprature = 1\n")
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", LOAD, path], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert "did you mean `learning_rate`?" in done.stdout
    assert done.stdout.endswith("\n[]\n")
    assert min(seconds) < 0.5
