"""The resolved recipe loads again, and every key of a TOML file has its line."""

import tomllib

import pytest
from recipe_texts import DENOISING, MASKED, PLAIN, REPLACED, SCRATCH, SOURCES

from llmkit import recipe
from llmkit.recipe.toml import key_lines, leaves, toml_value

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
        "[samples]\nmax_new_tokens = 60  # default\n\n"
        '[optimizer]\nname = "adamw"  # default\n\n'
        "[guard]\nmax_skipped_steps = 5  # default\ndataloader_timeout = 600  # default\n\n"
        "[speed]\nfused_loss = true  # default\nskip_ignored = true  # default\n"
        "fast_dropout = true  # default\nreuse_memory = true  # default\n\n"
        "[report]\nrows = true  # default\npredictions = true  # default\n"
    )


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
