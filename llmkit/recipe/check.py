"""Check a recipe before torch is imported: unknown keys, wrong types, keys that contradict each other."""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from llmkit.recipe import bounds, schema, upstream
from llmkit.recipe.data_tables import Source
from llmkit.recipe.draft import TABLE, Draft
from llmkit.recipe.keys import TEXT
from llmkit.recipe.synonyms import for_shell, replacement, suggestion, table_replacement
from llmkit.recipe.table import Table, field_types, named_tables, nested_tables
from llmkit.recipe.toml import Key, dotted
from llmkit.recipe.types import nearest


def given(draft: Draft, *key: str) -> bool:
    """Tell whether a key was set, even to a value that was refused: such a key is not missing as well."""
    table_refused = key[0] not in draft.values and bool({key[:1]} & (draft.lines.keys() | draft.given.keys()))
    return table_refused or key in draft.lines or key in draft.given


def check_keys(draft: Draft) -> None:
    """Report unknown keys and wrong types, and remove them, so that the later checks see valid values only."""
    _check_task(draft)
    tables = schema.own_tables(draft.task)
    for table, content in list(draft.values.items()):
        if table == "task" or (table == "tasks" and draft.task == "multi-task"):
            continue  # the tasks are drafts of their own
        mistakes: list[tuple[Key, str]] = []
        reason = ""
        if table in ("output_dir", "output_mirror"):
            mistakes = list(TEXT.mistakes(content, (table,)))
            if content == "":
                what = "a folder" if table == "output_dir" else "an address"
                mistakes = [((table,), f"must not be empty: name {what}, or leave it out")]
        elif draft.task == "multi-task" and table in ("data", "evaluation", "lora"):
            reason = (
                "an adapter is for one task only"
                if table == "lora"
                else f"each task has its own: set it in [tasks.NAME.{table}]"
            )
        elif table in ("generation", "samples") and draft.task in schema.TASKS and draft.task not in schema.GENERATING:
            reason = f"belongs to the tasks that generate text: {', '.join(schema.GENERATING)}"
        elif table not in tables and table not in schema.UPSTREAM_TABLES:
            mistakes = _unknown_table(table, content, draft)
        elif table == "evaluation" and draft.task in schema.PRETRAINING:
            reason = f"belongs to fine-tuning; {draft.task} has its own metrics"
        elif not isinstance(content, dict):
            mistakes = list(TABLE.mistakes(content, (table,)))
            if meant := replacement((table,), draft.written((table,)), draft.task):
                mistakes = [(key, f"{message}, did you mean `{meant}`?") for key, message in mistakes]
        else:
            _check_table(draft, table, content)
            continue
        if reason:
            mistakes = [((table,), reason)]
        for key, message in mistakes:
            draft.problem(key, message)
        if mistakes:
            del draft.values[table]


def _check_task(draft: Draft) -> None:
    task, tasks = draft.task, f"{', '.join(schema.TASKS[:-1])} and {schema.TASKS[-1]}"
    if not isinstance(task, str):
        draft.problem(("task",), f"required, one of {tasks}" if task is None else f"must be one of {tasks}")
    elif task not in schema.TASKS:
        close_task = nearest(task, schema.TASKS)
        draft.problem(
            ("task",),
            f'"{task}" is not a task; ' + (f'did you mean "{close_task}"?' if close_task else f"choose from {tasks}"),
        )


def _unknown_table(name: str, content: Any, draft: Draft) -> list[tuple[Key, str]]:
    tables = [*schema.own_tables(draft.task), *schema.UPSTREAM_TABLES]
    if not isinstance(content, dict):
        return [((name,), _unknown("unknown key", (name,), ["task", "output_dir", "output_mirror", *tables], draft))]
    close_table = nearest(name, tables) if draft.may_search() else ""
    mistakes: list[tuple[Key, str]] = []
    for key in [key for key in draft.given if key[0] == name]:
        if meant := table_replacement(key, close_table, draft.written(key) or "", draft.task):
            mistakes.append((key, f"unknown table, did you mean `{meant}`?"))
    if mistakes and not any(key[0] == name for key in draft.lines):
        return mistakes
    advice = f", did you mean [{close_table}]?" if close_table else f"; the tables are {', '.join(tables)}"
    return [*mistakes, ((name,), f"unknown table{advice}")]


def _unknown(message: str, key: Key, siblings: Sequence[str], draft: Draft) -> str:
    meant = suggestion(key, siblings, draft.written(key), draft.task) if draft.may_search() else ""
    return f"{message}, did you mean `{meant}`?" if meant else message


def _check_table(draft: Draft, table: str, content: dict[str, Any]) -> None:
    own_table = schema.own_tables(draft.task).get(table)
    class_name = schema.UPSTREAM_TABLES.get(table, "")
    fields = upstream.fields(class_name) if class_name else {}
    types = (
        field_types(own_table) if own_table else {name: field.type for name, field in fields.items() if name in content}
    )
    for key, value in list(content.items()):
        if class_name and (reason := upstream.refusal(class_name, key, value)):
            if draft.written((table, key)) is not None:
                reason = for_shell(table, reason)
            mistakes: list[tuple[tuple[str, ...], str]] = [((table, key), reason)]
        elif key in types:
            mistakes = list(types[key].mistakes(value, (table, key)))
            if key in fields and fields[key].deprecated:
                draft.notes.append(f"{table}.{key}: {fields[key].deprecated} ({upstream.installed(class_name)})")
            if not mistakes and own_table:
                mistakes = _mistakes_in_field(draft, (table, key), own_table, value)
            if not mistakes and (class_name or (table, key) == ("model", "config")):
                mistakes = list(bounds.mistakes(class_name, key, value, (table, key)))
        else:
            mistakes = [((table, key), _unknown_key(draft, table, key))]
        for path, message in mistakes:
            draft.problem(path, message)
        if mistakes:
            del content[key]


def _mistakes_in_field(draft: Draft, path: Key, table: type[Table], content: Any) -> list[tuple[Key, str]]:
    """Find the mistakes inside a field of `table` that is one of llmkit's tables, or several by name."""
    key = path[-1]
    if key in nested_tables(table):
        return _mistakes_in_table(draft, path, nested_tables(table)[key], content)
    if key not in named_tables(table):
        return []
    mistakes: list[tuple[Key, str]] = []
    for name, table_content in content.items():
        type_mistakes = list(TABLE.mistakes(table_content, (*path, name)))
        mistakes += type_mistakes or _mistakes_in_table(draft, (*path, name), named_tables(table)[key], table_content)
    return mistakes


def _mistakes_in_table(draft: Draft, path: Key, table: type[Table], content: Any) -> list[tuple[Key, str]]:
    """Find the unknown keys and wrong types of a table inside one of llmkit's tables."""
    types = field_types(table)
    mistakes: list[tuple[Key, str]] = []
    for key, value in content.items():
        if key in types:
            type_mistakes = list(types[key].mistakes(value, (*path, key)))
            mistakes += type_mistakes or _mistakes_in_field(draft, (*path, key), table, value)
        else:
            mistakes.append(((*path, key), _unknown_among(draft, (*path, key), list(types))))
    return mistakes


def _unknown_key(draft: Draft, table: str, key: str) -> str:
    class_name = schema.UPSTREAM_TABLES.get(table)
    if class_name:
        message = f"not a field of {class_name} in {upstream.installed(class_name)}"
        return _unknown(message, (table, key), list(upstream.fields(class_name)), draft)
    if table == "data":
        for task, data in schema.DATA_OF_TASK.items():
            if key in data.model_fields:
                meant = replacement((table, key), draft.written((table, key)), draft.task)
                advice = f", did you mean `{meant}`?" if meant else ""
                return f"belongs to the task {task}, and this is {draft.task}{advice}"
    return _unknown_among(draft, (table, key), list(schema.own_tables(draft.task)[table].model_fields))


def _unknown_among(draft: Draft, key: Key, siblings: Sequence[str]) -> str:
    message = _unknown("unknown key", key, siblings, draft)
    return message if "did you mean" in message else f"{message}; [{dotted(key[:-1])}] has {', '.join(siblings)}"


_BOUNDS = {
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be above {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be below {lt:g}",
    "finite_number": "must be a finite number",
}


def build_tables(draft: Draft) -> dict[str, Any]:
    """Build llmkit's own tables as frozen models, which checks what a type does not say (bounds)."""
    tables: dict[str, Any] = {}
    for name, table in schema.own_tables(draft.task).items():
        if name in ("early_stopping", "sweep") and name not in draft.values:
            continue
        try:
            tables[name] = table(**draft.values.get(name, {}))
        except ValidationError as error:
            for mistake in error.errors():
                key = (name, *_key_of(table, tuple(map(str, mistake["loc"]))))
                if mistake["type"] == "missing":
                    if not given(draft, *key):
                        draft.problem(key, "required: a Hub id, a file, a folder or a glob")
                    continue
                bound = _BOUNDS.get(mistake["type"], "").format(**mistake.get("ctx", {}))
                message = f"{bound}, not {mistake['input']}" if bound else mistake["msg"].removeprefix("Value error, ")
                draft.problem(key, "must not be empty" if mistake["type"] == "string_too_short" else message)
    return tables


def _key_of(table: type[Table], loc: Key) -> Key:
    """Return the key of a location in a pydantic error, which names the members of a union too."""
    if loc[:1] and loc[0] in named_tables(table):
        return (*loc[:2], *_key_of(named_tables(table)[loc[0]], loc[2:]))
    if loc[:1] and loc[0] in nested_tables(table):
        return (loc[0], *_key_of(nested_tables(table)[loc[0]], loc[1:]))
    return loc[:1]


def check_together(draft: Draft) -> None:
    """Check keys against each other."""
    _check_model(draft)
    _check_data(draft)
    get, problem = draft.get, draft.problem
    _check_length(draft)
    _check_best(draft)
    _check_optimizer(draft)
    if get("trainer", "bf16") is True and get("trainer", "fp16") is True:
        later = max(("bf16", "fp16"), key=lambda name: draft.lines.get(("trainer", name), 10**9))
        problem(("trainer", later), "set bf16 or fp16, not both")
    if "early_stopping" in draft.values and not draft.fits_rows:
        if get("trainer", "eval_strategy") in (None, "no") and not _refused(draft, "trainer", "eval_strategy"):
            problem(
                ("early_stopping",), 'needs `trainer.eval_strategy = "steps"` or "epoch": it is based on evaluations'
            )
        if not (get("trainer", "metric_for_best_model") or get("trainer", "load_best_model_at_end")):
            problem(
                ("early_stopping",), "needs `trainer.metric_for_best_model` or `trainer.load_best_model_at_end = true`"
            )


def _check_best(draft: Draft) -> None:
    """Report a best checkpoint that could not be told: it is saved at other steps than it is evaluated."""
    if not draft.get("trainer", "load_best_model_at_end") or draft.fits_rows:
        return
    usual = {name: field.default for name, field in upstream.fields("TrainingArguments").items()}
    trainer = usual | schema.TRAINER_DEFAULTS | (draft.get("trainer") or {})
    key, save, evaluate = ("trainer", "load_best_model_at_end"), trainer["save_strategy"], trainer["eval_strategy"]
    names = ("eval_strategy", "save_strategy", "eval_steps", "save_steps", "logging_steps")
    if any(_refused(draft, "trainer", name) for name in names):
        return
    if evaluate == "no" and "early_stopping" not in draft.values:  # which says the same
        draft.problem(key, 'needs `trainer.eval_strategy = "steps"` or "epoch": evaluations tell which is the best')
    elif evaluate != "no" and save not in ("best", evaluate):
        draft.problem(
            key,
            f'needs a checkpoint at each evaluation: set `trainer.save_strategy = "{evaluate}"`, as '
            f'`trainer.eval_strategy`, or "best", not "{save}"',
        )
    elif save == evaluate == "steps":
        every, measured = trainer["save_steps"], trainer["eval_steps"] or trainer["logging_steps"]
        if measured and abs(every / measured - round(every / measured)) > 1e-9:
            draft.problem(
                key, f"needs `trainer.save_steps` ({every:g}) to be a multiple of `trainer.eval_steps` ({measured:g})"
            )


def _check_optimizer(draft: Draft) -> None:
    """Report keys of Muon without Muon, and what Muon cannot be combined with."""
    muon = draft.get("optimizer", "name") == "muon"
    for key in ("learning_rate", "momentum", "weight_decay"):
        if draft.get("optimizer", key) is not None and not muon and not _refused(draft, "optimizer", "name"):
            own = "" if key == "momentum" else f"; that of AdamW is trainer.{key}"
            draft.problem(("optimizer", key), f'belongs to Muon: set `optimizer.name = "muon"`{own}')
    if not muon:
        return
    if "lora" in draft.values:
        draft.problem(("optimizer", "name"), 'Muon is for whole matrices, and [lora] trains an adapter: use "adamw"')
    optim = draft.get("trainer", "optim")
    if optim is not None and not str(optim).startswith("adamw_torch"):
        draft.problem(
            ("optimizer", "name"), f'"muon" leaves the rest to AdamW, and `trainer.optim` is "{optim}": leave that out'
        )


def _check_length(draft: Draft) -> None:
    """Report a length of training that is none; upstream takes the default for it, or ends before the first step."""
    steps, epochs = draft.get("trainer", "max_steps"), draft.get("trainer", "num_train_epochs")
    if steps is not None and steps < 1 and steps != -1:
        draft.problem(("trainer", "max_steps"), f"must be at least 1, or -1 for `num_train_epochs`, not {steps}")
    elif epochs is not None and epochs <= 0 and steps in (None, -1):
        draft.problem(("trainer", "num_train_epochs"), f"must be above 0, not {epochs:g}")


def without_effect(draft: Draft) -> list[str]:
    """Tell which keys do nothing beside another: steps between savings or evaluations that are not made by steps."""
    notes = []
    for name, usual, what in (("save", "steps", "saving"), ("eval", "no", "evaluation")):
        steps, strategy = (("trainer", f"{name}_{key}") for key in ("steps", "strategy"))
        chosen = draft.get(*strategy) or usual
        if draft.get(*steps) is not None and chosen != "steps":
            notes.append(
                f"{dotted(steps)} has no effect: {dotted(strategy)} is {chosen}; for {what} by steps, set "
                f"{dotted(strategy)}=steps"
            )
    return notes


def _refused(draft: Draft, *key: str) -> bool:
    return given(draft, *key) and draft.get(*key) is None


def _check_model(draft: Draft) -> None:
    get, problem = draft.get, draft.problem
    named, built = given(draft, "model", "name"), get("model", "config", "model_type") is not None
    if named and built:
        problem(("model", "config", "model_type"), "leave it out: `model.name` decides the architecture")
    elif not named and not built:
        if not _refused(draft, "model", "config"):
            problem(("model", "name"), "required; or `model.config.model_type` for an architecture of your own")
    elif not named and get("model", "init") == "pretrained":
        problem(("model", "init"), 'pretrained weights need `model.name`; without it `init` is "scratch"')
    trained_part = get("model", "train") or "all"
    if get("model", "init") == "scratch":
        if "lora" in draft.values:
            problem(("lora",), "an adapter needs pretrained weights, and `model.init` is scratch")
        if trained_part != "all":
            problem(
                ("model", "train"), "a model from scratch has no pretrained weights to freeze: all of it is trained"
            )
    if trained_part != "all" and "lora" in draft.values:
        problem(("model", "train"), "an adapter freezes the whole model; remove `model.train` or [lora]")
    if draft.task == "replaced-token-detection":
        reason = "replaced-token-detection trains all weights of both its models"
        if "lora" in draft.values:
            problem(("lora",), reason)
        elif trained_part != "all":
            problem(("model", "train"), reason)
        if get("model", "generator", "name") and (get("model", "init") == "scratch" or (built and not named)):
            problem(
                ("model", "generator", "name"),
                "the generator shares the embeddings of the discriminator, which starts from scratch",
            )
    if get("model", "load_in_4bit") and "lora" not in draft.values:
        problem(("model", "load_in_4bit"), "4-bit weights cannot be trained; add an adapter, such as `lora.r = 16`")
    start = get("lora", "init_lora_weights")
    if str(start).lower().startswith(("pissa", "olora")):
        for key in ("model.load_in_4bit", "lora.target_parameters", "lora.use_bdlora", "lora.alora_invocation_tokens"):
            if get(*key.split(".")):
                problem(("lora", "init_lora_weights"), f'"{start}" and `{key}` exclude each other; leave one out')
    if draft.task in schema.TASKS and draft.task not in schema.PRETRAINING:
        for key in ("num_labels", "id2label", "label2id", "problem_type"):
            if get("model", "config", key) is not None:
                problem(("model", "config", key), "the data decides it; see data.label_names and data.problem_type")
    if get("model", "generator") is not None and draft.task != "replaced-token-detection":
        problem(("model", "generator"), f"belongs to the task replaced-token-detection, and this is {draft.task}")
    trained = get("tokenizer", "type")
    if trained and draft.task == "multi-task":
        problem(("tokenizer", "type"), "the tasks share one tokenizer: name an existing one, or that of a run")
    if trained and get("tokenizer", "name"):
        problem(("tokenizer", "type"), "set `name` for an existing tokenizer or `type` for a new one, not both")
    if trained and named and get("model", "init") in (None, "pretrained") and not _refused(draft, "model", "init"):
        problem(("tokenizer", "type"), 'a new tokenizer does not fit pretrained weights; set `model.init = "scratch"`')
    if not named and built and not trained and not get("tokenizer", "name") and not _any_given(draft, "tokenizer"):
        problem(("tokenizer",), "without `model.name` it needs `tokenizer.name`, or `tokenizer.type` to train one")
    for key in schema.TRAINED_TOKENIZER:
        if get("tokenizer", key) is not None and not trained and not given(draft, "tokenizer", "type"):
            problem(("tokenizer", key), "only for a new tokenizer; set `tokenizer.type`, or leave this key out")
    for key in ("add_tokens", "add_from_text"):
        if get("tokenizer", key) is None:
            continue
        if trained:
            problem(("tokenizer", key), "extends an existing tokenizer; for a new one, set tokenizer.vocab_size")
        elif "lora" in draft.values or trained_part != "all":
            problem(("tokenizer", key), "new tokens need trainable embeddings: train the whole model")
        elif draft.task in ("multi-task", "replaced-token-detection"):
            problem(("tokenizer", key), f"{draft.task} has several models, which share their embeddings")
    for name in get("tokenizer", "special_tokens") or {}:
        if name not in schema.SPECIAL_TOKENS:
            close_name = nearest(name, schema.SPECIAL_TOKENS)
            suggestion = (
                f"did you mean `{close_name}`?" if close_name else f"the keys are {', '.join(schema.SPECIAL_TOKENS)}"
            )
            problem(("tokenizer", "special_tokens", name), f"unknown key, {suggestion}")


def _any_given(draft: Draft, table: str) -> bool:
    return any(key[0] == table and key[1:2] in (("name",), ("type",)) for key in (*draft.lines, *draft.given))


def _check_data(draft: Draft) -> None:
    get, problem = draft.get, draft.problem
    if draft.task in schema.PRETRAINING:
        _check_text(draft)
    if get("data", "validation_from") == "end":
        if get("data", "streaming"):
            problem(("data", "validation_from"), "the end of a stream is not known; hold out documents instead")
        elif not given(draft, "data", "validation_fraction"):
            problem(("data", "validation_from"), "needs `data.validation_fraction`: the share of the text to hold out")
    if get("data", "streaming") and (get("trainer", "dataloader_num_workers") or 0) > 1:
        problem(("trainer", "dataloader_num_workers"), "a stream is read by at most one worker")
    steps = get("trainer", "max_steps")
    if get("data", "streaming") and (steps is None or steps <= 0) and not _refused(draft, "trainer", "max_steps"):
        problem(
            ("data", "streaming"),
            "needs `trainer.max_steps` (with --max-time any number): the length of a stream is not known",
        )
    changes = ("delete", "swap", "synonym")
    chosen = [key for key in changes if get("data", "augment", key) or _refused(draft, "data", "augment", key)]
    if get("data", "augment") is not None and not chosen:
        problem(("data", "augment"), "nothing would be altered: set `delete`, `swap` or `synonym`")
    if get("data", "problem_type") == "regression":
        for key in ("class_weights", "label_names"):
            if get("data", key) is not None:
                problem(("data", key), "regression has no classes")
    stride, length = get("data", "stride"), get("data", "max_length")
    if stride is not None and length is not None and stride >= length // 2:
        problem(("data", "stride"), f"must be below half of data.max_length ({length}): the question needs room too")
    mask_share, random_share = get("data", "mask_replace_prob"), get("data", "random_replace_prob")
    shares = (0.8 if mask_share is None else mask_share) + (0.1 if random_share is None else random_share)
    if draft.task == "masked-lm" and shares > 1 + 1e-9:
        key = "mask_replace_prob" if random_share is None else "random_replace_prob"
        problem(("data", key), f"mask_replace_prob and random_replace_prob add up to {shares:g}, more than 1")


def _check_text(draft: Draft) -> None:
    get, problem = draft.get, draft.problem
    sources, streamed = get("data", "sources"), get("data", "streaming")
    if sources is not None and given(draft, "data", "path"):
        problem(("data", "sources"), "replaces `data.path`: set one of them, not both")
    elif sources is None and not given(draft, "data", "path") and not _refused(draft, "data", "sources"):
        problem(("data", "path"), "required: a Hub id, a file, a folder or a glob; or several [data.sources.NAME]")
    elif get("data", "path") == "":
        problem(("data", "path"), "must not be empty")
    if sources is not None:
        if len(sources) < 2:
            problem(("data", "sources"), "a mixture needs at least two sources")
        if streamed:
            problem(("data", "streaming"), "sources are mixed by their size, and the size of a stream is unknown")
        for name in sources:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                problem(
                    ("data", "sources", name),
                    "its metrics are logged under this name: use letters, digits, - and _ only",
                )
        for key, field in Source.model_fields.items():
            # Not a default, though: a resolved recipe names them all.
            if key not in ("path", "clean") and get("data", key) not in (None, field.default):
                problem(("data", key), "each source has its own: set it in [data.sources.NAME]")
        if given(draft, "data", "max_train_samples"):
            problem(
                ("data", "max_train_samples"),
                "a mixture lasts as long as the run; to limit a source, set its `split`, such as train[:5%]",
            )
    corruptions = ("permutation", "infilling", "span_corruption")
    weighted = any(get("data", "corruption", key) or _refused(draft, "data", "corruption", key) for key in corruptions)
    if draft.task == "denoising" and not weighted and not _refused(draft, "data", "corruption"):
        problem(
            ("data", "corruption"),
            "no corruption is chosen: give a weight to `permutation`, `infilling` or `span_corruption`, such as "
            "data.corruption.span_corruption=1",
        )
