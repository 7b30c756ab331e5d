"""The tables of a recipe: their defaults, frozen, documented, and of upstream's values alone."""

import tomllib

import pytest
from pydantic import ValidationError
from recipe_texts import MASKED, PLAIN, SCRATCH, SOURCES, TRANSFORMERS

from llmkit import recipe
from llmkit.recipe import cleaning, data_tables, schema
from llmkit.recipe.table import Table, field_types, named_tables, nested_tables


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
        found += [each for each in (*nested_tables(table).values(), *named_tables(table).values()) if each not in found]
    return found


def test_the_tables_that_stand_in_a_table_are_found():
    assert {data_tables.Source, cleaning.Clean, schema.Generator} <= set(tables("causal-lm"))
    assert data_tables.Corruption in tables("denoising")
    assert data_tables.Augment in tables("text-classification")


@pytest.mark.parametrize(
    "table", [*dict.fromkeys(table for task in schema.TASKS for table in tables(task)), schema.Recipe]
)
def test_every_field_is_documented_and_its_default_is_of_its_type(table):
    loaded = {"source", "name", "origins", "notes", "fits_rows", "fits_machine", "typed"}
    added = loaded if table is schema.Recipe else set()
    for name, field in table.model_fields.items():
        assert name in added or field.description
    if table is not schema.Recipe:
        for name, kind in field_types(table).items():
            default = table.model_fields[name].get_default()
            if not table.model_fields[name].is_required() and default is not None:
                assert kind.admits(dict(default) if isinstance(default, Table) else default), name
            assert "any" not in kind.kinds, name
