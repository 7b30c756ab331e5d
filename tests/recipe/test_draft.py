"""Overrides: their values, what they unset and drop, and their mistakes."""

import pytest
from recipe_texts import PLAIN, SOURCES, TRAINING, problems

from llmkit import recipe


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
        "data.path is set on the command line: ignoring the recipe's data.name, data.revision, data.split, "
        "data.data_files, data.validation_split",
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
    assert read.notes == ("data.path is set on the command line: ignoring the recipe's data.sources",)


def test_another_path_of_a_source_drops_what_described_the_first(write):
    read = recipe.load(write(SOURCES), ["data.sources.web.path=org/other"])
    web, books = read.data.sources["web"], read.data.sources["books"]
    assert (web.path, web.name, web.weight, books.path) == ("org/other", None, 3, "org/books")
    assert read.notes == (
        "data.sources.web.path is set on the command line: ignoring the recipe's data.sources.web.name",
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.sources.web.wieght=2",
            "data.sources.web.wieght: unknown key, did you mean `data.sources.web.weight=2`?",
        ),
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
        (
            "data.sources.web.clean.repare=true",
            "data.sources.web.clean.repare: unknown key, did you mean `data.sources.web.clean.repair=true`?",
        ),
        ("data.clean.repare=true", "data.clean.repare: unknown key, did you mean `data.clean.repair=true`?"),
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
        ("dat.path=x", "dat.path: unknown table, did you mean `data.path=x`?"),
        ("learning_rate=3", "learning_rate: unknown key, did you mean `trainer.learning_rate=3`?"),
        ("data.blok_size=3", "data.blok_size: unknown key, did you mean `data.block_size=3`?"),
        ("data.blok_size=", "data.blok_size: unknown key, did you mean `data.block_size=`?"),
        ("trainer.warmup_ratio=0.1", f"trainer.warmup_ratio: {TRAINING}; use `trainer.warmup_steps=0.1`"),
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
        ("model=gpt2", 'model: must be a table, not the string "gpt2", did you mean `model.name=gpt2`?'),
        (
            "model.config.act=gelu",
            "model.config.act: gelu is not TOML; quote a string for TOML, and the whole argument for the shell: "
            "'model.config.act=\"gelu\"'",
        ),
        (
            "lora.target_modules=[c_attn]",
            "lora.target_modules: [c_attn] is not TOML; quote strings for TOML, and the whole argument for the shell: "
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
        "line 1  model: must be a table, not 3, did you mean `model.name`?"
    ]


@pytest.mark.parametrize(
    ("line", "instead", "override", "found"),
    [
        ("[data]", "[[data]]", "data.block_size=64", "data: must be a table, not the array"),
        ("[model]", "[[model]]", "model.revision=main", "model: must be a table, not the array"),
        ("[data]", "[[trainer]]\nlearning_rate = 1e-3\n[data]", "trainer.max_steps=2", "trainer: must be a table, not"),
        ("[data]", "[[guard]]\n[data]", "guard.spike_sigma=3", "guard: must be a table, not the array"),
        (
            "[data]",
            "[[model.config]]\na = 1\n[data]",
            "model.config.n=1",
            "model.config: must be a table, not the array",
        ),
        (
            "[data]",
            "[trainer]\nmax_steps = 3\n[data]",
            "trainer.max_steps.x=1",
            "trainer.max_steps must be a table, not 3",
        ),
        ("[data]", "[data]\nclean = true", "data.clean.html=true", "data.clean: must be a table, not true"),
    ],
)
def test_an_override_does_not_replace_what_stands_where_a_table_is_wanted(write, line, instead, override, found):
    messages = problems(write(PLAIN.replace(line, instead)), override)
    assert any(found in message for message in messages)
    assert not any("required" in message for message in messages)
