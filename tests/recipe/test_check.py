"""Every mistake of a recipe at once, with its line, before torch is imported."""

import subprocess
import sys
import time

import pytest
from recipe_texts import DENOISING, MASKED, PLAIN, REPLACED, SCRATCH, SOURCES, TRAINING, TRANSFORMERS, problems

from llmkit import recipe
from llmkit.errors import UserError

BUILT = (
    "causal-lm, masked-lm, denoising, replaced-token-detection, text-classification, question-answering, "
    "token-classification, multiple-choice, seq2seq, chat and multi-task"
)


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
        f"command line  trainer.lerning_rate: {TRAINING}, did you mean `trainer.learning_rate=1`?",
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
        (PLAIN.replace("causal-lm", "causal_lm"), 'line 1  task: "causal_lm" is not a task; did you mean "causal-lm"?'),
        (
            PLAIN.replace("causal-lm", "denoisin"),
            'line 1  task: "denoisin" is not a task; did you mean "denoising"?',
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
            "line 8  generation: belongs to the tasks that generate text: causal-lm, denoising, seq2seq, chat",
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
        ("lora = 3\n" + PLAIN, "line 1  lora: must be a table, not 3, did you mean `lora.r`?"),
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
        (PLAIN + 'encoding = "utf-9"\n', 'line 8  data.encoding: "utf-9" is not an encoding known to Python'),
        (PLAIN.replace("org/corpus", ""), "line 7  data.path: must not be empty"),
        # what is missing
        (
            PLAIN.replace("path", "# path"),
            "line 6  data.path: required: a Hub id, a file, a folder or a glob; or several [data.sources.NAME]",
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
            "line 5  tokenizer.type: set `name` for an existing tokenizer or `type` for a new one, not both",
        ),
        (
            PLAIN + '[tokenizer]\ntype = "unigram"\n',
            'line 9  tokenizer.type: a new tokenizer does not fit pretrained weights; set `model.init = "scratch"`',
        ),
        (
            PLAIN + "[tokenizer]\nvocab_size = 9\n",
            "line 9  tokenizer.vocab_size: only for a new tokenizer; set `tokenizer.type`, or leave this key out",
        ),
        (
            SCRATCH.replace("[data]", 'special_tokens = { eos = "x" }\n[data]'),
            "line 6  tokenizer.special_tokens.eos: unknown key, did you mean `eos_token`?",
        ),
        (
            PLAIN + 'validation_from = "end"\n',
            "line 8  data.validation_from: needs `data.validation_fraction`: the share of the text to hold out",
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
        (PLAIN + "[trainer]\nbf16 = true\nfp16 = true\n", "line 10  trainer.fp16: set bf16 or fp16, not both"),
        # several sources
        (SOURCES + "wieght = 2\n", "line 12  data.sources.books.wieght: unknown key, did you mean `weight`?"),
        (
            SOURCES + "block_size = 2\n",
            "line 12  data.sources.books.block_size: unknown key, did you mean `data.block_size`?",
        ),
        (
            SOURCES + "zzz = 2\n",
            "line 12  data.sources.books.zzz: unknown key; [data.sources.books] has path, name, revision, data_files, "
            "split, encoding, format, delimiter, quoting, header, column_names, max_document_bytes, validation_split, "
            "text_column, sample_by, clean, weight",
        ),
        (SOURCES.replace("= 3", '= "3"'), 'line 9  data.sources.web.weight: must be a number, not the string "3"'),
        (SOURCES.replace("= 3", "= 0"), "line 9  data.sources.web.weight: must be above 0, not 0"),
        (
            SOURCES + 'encoding = "utf-9"\n',
            'line 12  data.sources.books.encoding: "utf-9" is not an encoding known to Python',
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
            "line 7  data.sources: replaces `data.path`: set one of them, not both",
        ),
        (SOURCES.partition("[data.sources.books]")[0], "line 6  data.sources: a mixture needs at least two sources"),
        (
            SOURCES.replace("block_size = 8", "streaming = true") + "[trainer]\nmax_steps = 9\n",
            "line 5  data.streaming: sources are mixed by their size, and the size of a stream is unknown",
        ),
        *(
            (
                SOURCES.replace("block_size = 8", said),
                f"line 5  data.{said.split()[0]}: each source has its own: set it in [data.sources.NAME]",
            )
            for said in ('split = "x"', 'text_column = "x"', 'sample_by = "line"', 'encoding = "latin-1"', 'name = "x"')
        ),
        (
            SOURCES.replace("block_size = 8", "max_train_samples = 8"),
            "line 5  data.max_train_samples: a mixture lasts as long as the run; to limit a source, set its "
            "`split`, such as train[:5%]",
        ),
        (
            SOURCES.replace("sources.books", 'sources."my books"'),
            'line 10  data.sources."my books": its metrics are logged under this name: use letters, digits, - '
            "and _ only",
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
            "line 9  data.clean.near_threshold: has no effect without `near_duplicates`",
        ),
        (
            PLAIN + "[data.clean]\nlanguages = ['english']\n",
            'line 9  data.clean.languages: "english" is not an ISO 639-1 code such as "en" or "zh"',
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
            "line 13  data.sources.books.clean.near_ngram: has no effect without `near_duplicates`",
        ),
        # denoising
        *(
            (
                text,
                f"line {line}  data.corruption: no corruption is chosen: give a weight to `permutation`, "
                "`infilling` or "
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
            "line 8  generation: belongs to the tasks that generate text: causal-lm, denoising, seq2seq, chat",
        ),
        # tokens that are added
        *(
            (
                SCRATCH.replace("causal-lm", task).replace("[data]", f"{said}\n[data]"),
                f"line 6  tokenizer.{said.split()[0]}: extends an existing tokenizer; for a new one, set "
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
            'line 8  early_stopping: needs `trainer.eval_strategy = "steps"` or "epoch": it is based on evaluations',
        ),
        (
            PLAIN + "[early_stopping]\n[trainer]\neval_strategy = 'steps'\n",
            "line 8  early_stopping: needs `trainer.metric_for_best_model` or `trainer.load_best_model_at_end = true`",
        ),
        # the optimizer
        (
            PLAIN + "[optimizer]\nlearning_rate = 0.01\n",
            'line 9  optimizer.learning_rate: belongs to Muon: set `optimizer.name = "muon"`; that of AdamW is '
            "trainer.learning_rate",
        ),
        (
            PLAIN + '[optimizer]\nname = "muon"\n[lora]\nr = 4\n',
            'line 9  optimizer.name: Muon is for whole matrices, and [lora] trains an adapter: use "adamw"',
        ),
        (
            PLAIN + '[optimizer]\nname = "muon"\n[trainer]\noptim = "adafactor"\n',
            'line 9  optimizer.name: "muon" leaves the rest to AdamW, and `trainer.optim` is "adafactor": leave that '
            "out",
        ),
        (PLAIN + "[optimizer]\nema = 1.0\n", "line 9  optimizer.ema: must be below 1, not 1.0"),
    ],
)
def test_each_mistake(write, text, message):
    assert problems(write(text)) == [message]


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
