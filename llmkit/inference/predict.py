"""What a finished model says of new rows: labels, answers, or the words that fill a blank."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit import hub, process
from llmkit.errors import UserError, say
from llmkit.inference.fill_mask import filler
from llmkit.inference.rows_io import Answer, Layout, answers, check_files, check_finite, read_rows, writing
from llmkit.recipe.data_tables import RowData
from llmkit.runs.finished import check_model, data_of, one_task_of, record_of

if TYPE_CHECKING:
    from llmkit.data.rows.table import Rows

BATCH = 32


def predict(name: str, texts: Sequence[str], source: Path | None, output: Path | None) -> None:
    """Answer each of `texts`, or each row of the file `source`, as JSON lines on stdout or into the file `output`.

    A `.csv` gets a table. Raises UserError for a model that does not predict and for rows that it cannot read.
    """
    check_files(texts, source, output)
    rows = read_rows(texts, source)
    first = next(rows, None)
    if first is None:
        raise UserError(f"--input: there are no rows in `{source}`", "nothing to predict: is it the right file?")
    check_model(name)
    task = one_task_of(name)
    if task in ("causal-lm", "chat"):
        chat = " --chat" * (task == "chat")
        raise UserError(f"`{name}` is a causal language model: it writes", f"llmkit generate{chat} --model {name}")
    if task == "denoising":  # its model writes from a text, as that of seq2seq does
        task = "seq2seq"
    if task == "replaced-token-detection":
        run = str(Path(name).parent) if Path(name).name.startswith("checkpoint-") else name
        raise UserError(
            f"`{name}` tells which tokens of a text were replaced: it is made to be fine-tuned",
            f"llmkit finetune RECIPE model.name={run}; its generator fills blanks: llmkit predict {run}/generator",
        )
    layout, answer = filler(name) if task == "masked-lm" else answerer(name, task)
    count = 0
    with writing(output) as write:
        for said in answers(itertools.chain([first], rows), source, layout, answer):
            write(said)
            count += 1
    if output is not None:
        say(f"{count:,} row{'s' * (count != 1)} -> {output}")


# ---- rows in, answers out ------------------------------------------------------------------------------------------


def answerer(name: str, task: str) -> tuple[Layout, Answer]:
    """How a classifier or a model that answers questions reads rows, and what it says of them."""
    import numpy as np
    import torch
    from transformers import AutoTokenizer

    from llmkit import tasks
    from llmkit.models import loading
    from llmkit.tasks.inputs import choose_collator, choose_length, fit_for_batches

    module = tasks.row_task(task)
    spec_from_config, forward, postprocess = (
        module.label_spec_from_config,
        module.forward_for_predict,
        module.postprocess,
    )
    assert spec_from_config is not None and forward is not None and postprocess is not None  # it does not write
    data: RowData = data_of(name, task)
    record = record_of(name)
    model = loading.load_model(name, tasks.model_class(task))
    with hub.loading(name, "model"):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=hub.commit(name), trust_remote_code=False)
    process.collect_from_here()
    fit_for_batches(tokenizer, model.config)
    trained = record.get("max_length") or record.get("block_size")
    length = choose_length(trained or data.max_length, model.config)
    label_spec = spec_from_config(model.config, record, data, tokenizer)
    collate = choose_collator(module, tokenizer, model.config)

    def answer(rows: "Rows", columns: Mapping[str, str]) -> list[dict[str, Any]]:
        part = module.examples(module.encode(rows, columns, tokenizer, data, length), label_spec, True)
        kept = []
        for start in range(0, len(part), BATCH):
            batch = collate([part[i] for i in range(start, min(start + BATCH, len(part)))])
            batch = {key: values.to(model.device) for key, values in batch.items()}
            with torch.inference_mode():
                kept.append(forward(model, batch, label_spec).cpu().numpy())
        outputs = np.concatenate(kept)
        check_finite(np.isfinite(outputs).all())
        by_row = dict(postprocess(outputs, part, label_spec))
        return [by_row[row] for row in range(len(by_row))]

    return lambda rows: _columns(rows, task, record.get("columns", {}), data), answer


def _columns(rows: "Rows", task: str, trained: Mapping[str, str], data: RowData) -> dict[str, str]:
    """The columns that the model reads, by role: those of its training data, under their names or those of the roles.

    Raises UserError where one is missing, and for texts as arguments where the model reads more than one.
    """
    from llmkit import tasks

    module = tasks.row_task(task)
    inputs = {role: column for role, column in trained.items() if role not in module.LABEL_ROLES}
    if not inputs and task == "question-answering":
        inputs = {"question": "question", "context": "context"}
    if inputs and set(inputs.values()) <= set(rows.columns):
        return inputs
    if inputs and set(inputs) <= set(rows.columns):
        return {role: role for role in inputs}
    if task == "token-classification" and "text" in rows.columns:  # it is cut into words
        return {"text": "text"}
    if len(inputs) == 1 and rows.columns == ("text",):
        return dict.fromkeys(inputs, "text")
    if len(inputs) > 1 and rows.columns == ("text",):
        raise UserError(
            f"this model reads {len(inputs)} texts at once: {', '.join(inputs.values())}",
            "put them into a .csv or .jsonl file, in columns of these names: --input FILE",
        )
    if inputs:
        missing = ", ".join(f"`{column}`" for column in inputs.values() if column not in rows.columns)
        raise UserError(f"{rows.source} has no column {missing}", f"it has {', '.join(rows.columns)}")
    try:
        return dict(module.resolve_columns(data, rows, False))
    except UserError as mistake:
        raise UserError(mistake.message, "call it `text`; of a pair, `text` and `text_pair`") from mistake
