"""Recipes: found by path or name, read strictly, frozen. Every mistake is reported, before torch is imported."""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llmkit.errors import UserError
from llmkit.recipe import schema, upstream
from llmkit.recipe.draft import TABLE, TEXT, Draft, apply_overrides, known_keys, read_value
from llmkit.recipe.keytype import nearest
from llmkit.recipe.named import NAMED
from llmkit.recipe.paths import resolve_paths
from llmkit.recipe.schema import ReadOnly, Recipe
from llmkit.recipe.tomltext import dotted, key_lines, leaves

_PACKAGE = Path(__file__).parents[1]


def bundled() -> dict[str, Path]:
    """The recipes that come with llmkit, by name (`tiny/gpt2`): in the wheel's package, or the checkout's folder."""
    inside = _PACKAGE / "recipes"
    folder = inside if inside.is_dir() else _PACKAGE.parent / "recipes"
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(folder.rglob("*.toml"))}


def find(path_or_name: str) -> Path:
    """The file of a recipe: a path that exists, else the name of one that comes with llmkit."""
    path = Path(path_or_name).expanduser()
    if path.is_file():
        return path
    known = bundled()
    name = path_or_name.removeprefix("recipes/").removesuffix(".toml")
    if name in known:
        return known[name]
    near = next((each for each in known if each.endswith(f"/{name}")), "") or nearest(name, known)
    hint = f"did you mean `{near}`? " if near else ""
    what = "is a folder, not a recipe" if path.is_dir() else "is neither a file nor a recipe that comes with llmkit"
    raise UserError(f"`{path_or_name}` {what}", f"{hint}`llmkit recipes list` names those that come with llmkit")


def copy(name: str, to: Path | None = None) -> Path:
    """Copy a recipe, and the file beside it that it learns from, to `to` or here; never over another file."""
    source = find(name)
    target = Path(source.name) if to is None else to / source.name if to.is_dir() else to
    data = tomllib.loads(source.read_text(encoding="utf-8")).get("data", {}).get("path", "")
    beside = source.parent / data if data and (source.parent / data).is_file() else None
    pairs = [(source, target), *([(beside, target.parent / beside.name)] if beside else [])]
    for original, made in pairs:
        if made.exists() and (original is source or made.read_bytes() != original.read_bytes()):
            raise UserError(f"`{made}` exists already", "name another: llmkit recipes copy NAME FILE")
    try:
        for original, made in pairs:
            made.write_bytes(original.read_bytes())
    except OSError as error:
        raise UserError(f"cannot write `{made}`: {error.strerror}") from None
    return target


def generation_options(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` words as fields of GenerationConfig; a UserError holds every mistake."""
    known = upstream.fields("GenerationConfig")
    options: dict[str, Any] = {}
    mistakes: list[str] = []
    for pair in pairs:
        key, equals, text = pair.partition("=")
        field = known.get(key)
        if not equals:
            mistakes.append(f"{pair}: not a setting, write `{nearest(pair, known) or 'KEY'}=VALUE`")
        elif why := upstream.refusal("GenerationConfig", key, text):
            mistakes.append(f"{key}: {why}")
        elif field is None:
            near = nearest(key, known)
            mistakes.append(
                f"{key}: not a field of GenerationConfig in {upstream.installed('GenerationConfig')}"
                + (f", did you mean `{near}`?" if near else "")
            )
        else:
            try:
                value = read_value(text, field.type, key)
                mistakes += [f"{key}: {message}" for _, message in field.type.mistakes(value, (key,))]
                options[key] = value
            except ValueError as mistake:
                mistakes.append(f"{key}: {mistake}")
    if mistakes:
        count = len(mistakes)
        raise UserError(
            f"{count} problem{'s' if count > 1 else ''} in the generation settings",
            "they are KEY=VALUE, with the keys of transformers' GenerationConfig",
            tuple(mistakes),
        )
    return options


def of_task(name: str) -> tuple[str, dict[str, Any]]:
    """The recipe that `--task NAME` stands for, and the settings that make it that task."""
    if name in NAMED:
        return NAMED[name]
    known = bundled()
    for each in (name, f"tiny/{name}"):
        if each in known:
            return each, {}
    near = nearest(name, [*NAMED, *known])
    if not near and (Path(name).exists() or name.endswith(".toml")):
        raise UserError(
            f"--task takes a name, and `{name}` is a file", f"a recipe goes without: llmkit finetune {name}"
        )
    names = ", ".join(NAMED)
    raise UserError(f"there is no task `{name}`", f"did you mean `{near}`?" if near else f"there are {names}")


def load(
    path_or_name: str | None,
    overrides: Sequence[str] = (),
    output_dir: str | None = None,
    task: str | None = None,
    verb: str | None = None,
) -> Recipe:
    """Read a recipe, or the one of a `--task`, and lay the command line over it; a UserError holds every mistake.

    `verb` is the command that is to use it, pretrain or finetune, where only one of them can.
    """
    settings: dict[str, Any] = {}
    if task is not None:
        path_or_name, settings = of_task(task)
    assert path_or_name is not None
    path = find(path_or_name)
    draft = _read(path)
    for key, value in settings.items():
        draft.adopt(tuple(key.split(".")), value)
    apply_overrides(draft, overrides)
    if output_dir is not None:
        draft.set(("output_dir",), output_dir, len(overrides))
    other = "pretrain" if draft.task in schema.PRETRAINING else "finetune"
    if verb not in (None, other) and draft.task in schema.TASKS:
        raise UserError(f"`{_shown(path)}` is for {draft.task}", f"llmkit {other} {path_or_name}")
    _check_keys(draft)
    resolve_paths(draft)
    if draft.get("model", "config", "model_type") and not _given(draft, "model", "name"):
        draft.values["model"].setdefault("init", "scratch")
    tables = _build_tables(draft)
    _check_together(draft)
    if draft.problems:
        count = len(draft.problems)
        shown = _shown(path)
        raise UserError(f"{count} problem{'s' if count > 1 else ''} in `{shown}`", details=draft.report())
    return _build(draft, tables, task)


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path)


def _read(path: Path) -> Draft:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read `{_shown(path)}`: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes().count(b"\n", 0, error.start) + 1
        raise UserError(f"`{_shown(path)}` line {line}: not UTF-8 ({error.reason})", "save the file as UTF-8") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        said, _, place = str(error).rpartition(" (at ")
        where = place.removesuffix(")").replace("end of document", f"line {text.count(chr(10)) + 1}, the end")
        raise UserError(f"`{_shown(path)}` {where}: not TOML: {said}") from None
    return Draft(path.resolve(), values, key_lines(text))


def _given(draft: Draft, *key: str) -> bool:
    """The key was set, rightly or wrongly: a key that is refused for its value is not missing as well."""
    table_refused = key[0] not in draft.values and bool({key[:1]} & (draft.lines.keys() | draft.given.keys()))
    return table_refused or key in draft.lines or key in draft.given


def _check_keys(draft: Draft) -> None:
    """Report unknown keys and wrong types, and take them out, so that what follows sees only what is sound."""
    _check_task(draft)
    own = schema.own_tables(draft.task)
    for table, content in list(draft.values.items()):
        if table == "task":
            continue
        if table == "output_dir":
            mistakes = [message for _, message in TEXT.mistakes(content, (table,))]
        elif table not in own and table not in schema.UPSTREAM_TABLES:
            mistakes = [_unknown_table(table, content, draft)]
        elif table == "generation" and draft.task in schema.TASKS and draft.task not in schema.GENERATING:
            mistakes = [f"belongs to the tasks that write: {', '.join(schema.GENERATING)}"]
        elif table == "evaluation" and draft.task in schema.PRETRAINING:
            mistakes = [f"belongs to fine-tuning; {draft.task} reports loss and perplexity"]
        elif not isinstance(content, dict):
            mistakes = [message for _, message in TABLE.mistakes(content, (table,))]
        else:
            _check_table(draft, table, content)
            continue
        for message in mistakes:
            draft.problem((table,), message)
            del draft.values[table]


def _check_task(draft: Draft) -> None:
    task, built = draft.task, f"{', '.join(schema.TASKS[:-1])} and {schema.TASKS[-1]}"
    if not isinstance(task, str):
        draft.problem(("task",), f"required, one of {built}" if task is None else f"must be one of {built}")
    elif task not in schema.TASKS:
        near = nearest(task, schema.KNOWN_TASKS)
        if task in schema.KNOWN_TASKS:
            message = f'"{task}" is not built yet; there are {built}'
        else:
            message = f'"{task}" is no task, ' + (f'did you mean "{near}"?' if near else f"there are {built}")
        draft.problem(("task",), message)


def _unknown_table(name: str, content: Any, draft: Draft) -> str:
    tables = [*schema.own_tables(draft.task), *schema.UPSTREAM_TABLES]
    if isinstance(content, dict):
        near = nearest(name, tables)
        return f"unknown table, did you mean [{near}]?" if near else f"unknown table; there are {', '.join(tables)}"
    return _unknown("unknown key", name, ["task", "output_dir", *tables], draft)


def _unknown(what: str, key: str, siblings: Sequence[str], draft: Draft) -> str:
    elsewhere = next((known for known in known_keys(draft.task) if known.rpartition(".")[2] == key), "")
    near = elsewhere or nearest(key, siblings)
    return f"{what}, did you mean `{near}`?" if near else what


def _check_table(draft: Draft, table: str, content: dict[str, Any]) -> None:
    own = schema.own_tables(draft.task).get(table)
    class_name = schema.UPSTREAM_TABLES.get(table, "")
    fields = upstream.fields(class_name) if class_name else {}
    types = schema.field_types(own) if own else {name: field.type for name, field in fields.items() if name in content}
    for key, value in list(content.items()):
        if class_name and (why := upstream.refusal(class_name, key, value)):
            found: list[tuple[tuple[str, ...], str]] = [((table, key), why)]
        elif key in types:
            found = list(types[key].mistakes(value, (table, key)))
            if key in fields and fields[key].deprecated:
                draft.notes.append(f"{table}.{key}: {fields[key].deprecated} ({upstream.installed(class_name)})")
        else:
            found = [((table, key), _unknown_key(draft, table, key))]
        for path, message in found:
            draft.problem(path, message)
        if found:
            del content[key]


def _unknown_key(draft: Draft, table: str, key: str) -> str:
    class_name = schema.UPSTREAM_TABLES.get(table)
    if class_name:
        what = f"not a field of {class_name} in {upstream.installed(class_name)}"
        return _unknown(what, key, list(upstream.fields(class_name)), draft)
    if table == "data":
        for task, data in schema.DATA_OF_TASK.items():
            if key in data.model_fields:
                return f"belongs to the task {task}, and this is {draft.task}"
    siblings = list(schema.own_tables(draft.task)[table].model_fields)
    message = _unknown("unknown key", key, siblings, draft)
    return message if "did you mean" in message else f"{message}; [{table}] has {', '.join(siblings)}"


_BOUNDS = {
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be above {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be below {lt:g}",
}


def _build_tables(draft: Draft) -> dict[str, Any]:
    """Our own tables as frozen models; what a type does not say (bounds) is checked here."""
    tables: dict[str, Any] = {}
    for name, table in schema.own_tables(draft.task).items():
        if name == "early_stopping" and name not in draft.values:
            continue
        try:
            tables[name] = table(**draft.values.get(name, {}))
        except ValidationError as error:
            for each in error.errors():
                key = (name, *(str(part) for part in each["loc"][:1]))
                if each["type"] == "missing":
                    if not _given(draft, *key):
                        draft.problem(key, "required: a Hub id, a file, a folder or a glob")
                    continue
                bound = _BOUNDS.get(each["type"], "").format(**each.get("ctx", {}))
                said = f"{bound}, not {each['input']}" if bound else each["msg"].removeprefix("Value error, ")
                draft.problem(key, "must not be empty" if each["type"] == "string_too_short" else said)
    return tables


def _check_together(draft: Draft) -> None:
    """What no single key shows."""
    _check_model(draft)
    _check_data(draft)
    get, problem = draft.get, draft.problem
    if get("trainer", "bf16") is True and get("trainer", "fp16") is True:
        later = max(("bf16", "fp16"), key=lambda name: draft.lines.get(("trainer", name), 10**9))
        problem(("trainer", later), "bf16 and fp16 exclude one another")
    if "early_stopping" in draft.values:
        if get("trainer", "eval_strategy") in (None, "no") and not _refused(draft, "trainer", "eval_strategy"):
            problem(("early_stopping",), 'needs `trainer.eval_strategy = "steps"` or "epoch": it looks at evaluations')
        if not (get("trainer", "metric_for_best_model") or get("trainer", "load_best_model_at_end")):
            problem(
                ("early_stopping",), "needs `trainer.metric_for_best_model` or `trainer.load_best_model_at_end = true`"
            )


def _refused(draft: Draft, *key: str) -> bool:
    return _given(draft, *key) and draft.get(*key) is None


def _check_model(draft: Draft) -> None:
    get, problem = draft.get, draft.problem
    named, built = _given(draft, "model", "name"), get("model", "config", "model_type") is not None
    if named and built:
        problem(("model", "config", "model_type"), "leave it out: `model.name` decides the architecture")
    elif not named and not built:
        if not _refused(draft, "model", "config"):
            problem(("model", "name"), "required; or `model.config.model_type` for an architecture of your own")
    elif not named and get("model", "init") == "pretrained":
        problem(("model", "init"), 'pretrained weights need `model.name`; without it `init` is "scratch"')
    part = get("model", "train") or "all"
    if get("model", "init") == "scratch":
        if "lora" in draft.values:
            problem(("lora",), "an adapter needs pretrained weights, and `model.init` is scratch")
        if part != "all":
            problem(("model", "train"), "a model from scratch has nothing to keep: all of it is trained")
    if part != "all" and "lora" in draft.values:
        problem(("model", "train"), "an adapter leaves all of the model as it is; take out `model.train` or [lora]")
    if get("model", "load_in_4bit") and "lora" not in draft.values:
        problem(("model", "load_in_4bit"), "4-bit weights cannot be trained; they need an adapter: `lora.r = 16`")
    if draft.task in schema.TASKS and draft.task not in schema.PRETRAINING:
        for key in ("num_labels", "id2label", "label2id", "problem_type"):
            if get("model", "config", key) is not None:
                problem(("model", "config", key), "the data decides it; see data.label_names and data.problem_type")
    trained = get("tokenizer", "type")
    if trained and get("tokenizer", "name"):
        problem(("tokenizer", "type"), "`name` and `type` exclude one another: a tokenizer that exists, or a new one")
    if trained and named and get("model", "init") in (None, "pretrained") and not _refused(draft, "model", "init"):
        problem(("tokenizer", "type"), 'a new tokenizer does not fit pretrained weights; set `model.init = "scratch"`')
    if not named and built and not trained and not get("tokenizer", "name") and not _any_given(draft, "tokenizer"):
        problem(("tokenizer",), "without `model.name` it needs `tokenizer.name`, or `tokenizer.type` to train one")
    for key in schema.TRAINED_TOKENIZER:
        if get("tokenizer", key) is not None and not trained and not _given(draft, "tokenizer", "type"):
            problem(("tokenizer", key), "only for a tokenizer that is trained; set `tokenizer.type`, or leave it out")
    for name in get("tokenizer", "special_tokens") or {}:
        if name not in schema.SPECIAL_TOKENS:
            near = nearest(name, schema.SPECIAL_TOKENS)
            known = f"did you mean `{near}`?" if near else f"there are {', '.join(schema.SPECIAL_TOKENS)}"
            problem(("tokenizer", "special_tokens", name), f"unknown key, {known}")


def _any_given(draft: Draft, table: str) -> bool:
    return any(key[0] == table and key[1:2] in (("name",), ("type",)) for key in (*draft.lines, *draft.given))


def _check_data(draft: Draft) -> None:
    get, problem = draft.get, draft.problem
    if get("data", "validation_from") == "end":
        if get("data", "streaming"):
            problem(("data", "validation_from"), "the end of a stream is not known; hold out documents instead")
        elif not _given(draft, "data", "validation_fraction"):
            problem(("data", "validation_from"), "needs `data.validation_fraction`: how much of the end")
    if get("data", "streaming") and (get("trainer", "dataloader_num_workers") or 0) > 1:
        problem(("trainer", "dataloader_num_workers"), "a stream is read by one worker at most")
    steps = get("trainer", "max_steps")
    if get("data", "streaming") and (steps is None or steps <= 0) and not _refused(draft, "trainer", "max_steps"):
        problem(("data", "streaming"), "needs `trainer.max_steps`: the length of a stream is not known")
    if get("data", "problem_type") == "regression":
        for key in ("class_weights", "label_names"):
            if get("data", key) is not None:
                problem(("data", key), "a regression has no classes")
    stride, length = get("data", "stride"), get("data", "max_length")
    if stride is not None and length is not None and stride >= length // 2:
        problem(("data", "stride"), f"must be below half of data.max_length ({length}): the question needs room too")
    masked, random = get("data", "mask_replace_prob"), get("data", "random_replace_prob")
    shares = (0.8 if masked is None else masked) + (0.1 if random is None else random)
    if draft.task == "masked-lm" and shares > 1 + 1e-9:
        key = "mask_replace_prob" if random is None else "random_replace_prob"
        problem(("data", key), f"mask_replace_prob and random_replace_prob add up to {shares:g}, more than 1")


def _build(draft: Draft, tables: dict[str, Any], task: str | None) -> Recipe:
    stem = task if task is not None else _stem(draft)
    recipe = Recipe(
        task=draft.task,
        output_dir=draft.get("output_dir"),
        trainer=ReadOnly(schema.TRAINER_DEFAULTS | draft.values.get("trainer", {})),
        lora=ReadOnly(draft.values["lora"]) if "lora" in draft.values else None,
        generation=ReadOnly(_generation(draft)),
        source=draft.source,
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "run",
        notes=tuple(draft.notes),
        **tables,
    )
    origins = {dotted(key): draft.origin(key) for key in leaves(recipe.model_dump())}
    return recipe.model_copy(update={"origins": ReadOnly(origins)})


def _stem(draft: Draft) -> str:
    return draft.source.parent.name if draft.source.stem == "recipe" else draft.source.stem  # runs/NAME/recipe.toml


def _generation(draft: Draft) -> dict[str, Any]:
    """What is not set is sampled as llmkit does it, unless the recipe asks for something else than sampling.

    An encoder-decoder writes as its model says, else what is most likely.
    """
    generation: dict[str, Any] = draft.values.get("generation", {})
    if draft.task not in schema.GENERATING or draft.task == "seq2seq":
        return generation
    merged = schema.GENERATION_DEFAULTS | generation
    if not merged["do_sample"] or "num_beams" in generation:
        unused = {"do_sample", "temperature", "top_p"} - generation.keys()
        merged = {key: value for key, value in merged.items() if key not in unused}
    if "max_length" in generation and "max_new_tokens" not in generation:
        del merged["max_new_tokens"]
    return merged
