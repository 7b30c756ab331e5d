"""Write a finished model as ONNX, with what it takes to use it, and keep it only if onnxruntime computes the same."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from llmkit import hub, process, tasks, temporary
from llmkit.errors import RunError, UserError, say
from llmkit.export import onnx_compare, onnx_file, onnx_readme
from llmkit.models import loading
from llmkit.recipe.tasks import TASKS

LOGITS = 1e-4  # the largest difference of a logit, in f32, where rounding explains no more
# Of int8 the share of equal best classes or tokens; of both how far the perplexity may be off, as a share, and another
# metric, in points of a hundred.
EQUAL, PERPLEXITY, POINTS = 0.99, 0.005, 0.5
OF_HUNDRED = ("seq2seq", "question-answering")  # tasks whose metrics go to 100; those of others to 1


def write(run: str, name: str, task: str, folder: Path, quantize: bool) -> list[str]:
    """Write the model `name` into `folder`: graphs, configuration, tokenizer, and a README that uses them.

    `run` is where the rows are known from that it is compared on, `name` the same model without an adapter. Returns
    what the comparison says. Raises UserError for a model that cannot be traced and RunError where it does not agree.
    """
    model = loading.load_model(name, tasks.model_class(task)).float().cpu()
    tokenizer = loading.load_tokenizer(name, hub.commit(name))
    process.collect_from_here()
    model.config.use_cache = TASKS[task].writes
    auto_class = TASKS[task].auto_class
    with loading.quiet():
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
    if not (folder / "tokenizer.json").exists():
        raise UserError(f"the tokenizer of `{run}` is Python code, which no other program can use")
    with temporary.folder() as traced:
        for graph in onnx_file.graphs(model, tokenizer, auto_class):
            say(f"tracing  {graph.file}")
            onnx_file.write_graph(graph, traced if quantize else folder)
        if quantize:
            said = _quantized(run, model, tokenizer, task, traced, folder)
        else:
            said = compare(run, model, tokenizer, task, folder, quantized=False)
    (folder / "README.md").write_text(onnx_readme.readme(model, tokenizer, task, said))
    return [*said, f"try it: the code in {onnx_readme.NAME}, which needs onnxruntime, tokenizers and numpy"]


def _quantized(run: str, model: Any, tokenizer: Any, task: str, traced: Path, folder: Path) -> list[str]:
    """Quantize the graphs in `traced` into `folder`, in the fastest way that agrees with the model.

    All layers; or all but the narrowing; or all by blocks.
    """
    ways: tuple[tuple[str, Callable[[Path, Path], None]], ...] = (
        ("", partial(onnx_file.quantize, spare=False)),
        ("with the narrowing layers in f32", partial(onnx_file.quantize, spare=True)),
        ("with a scale for each 32 inputs of a layer, which is slower", onnx_file.quantize_blocks),
    )
    for number, (_, quantize) in enumerate(ways):
        for file in traced.glob("*.onnx"):
            quantize(file, folder / file.name)
        try:
            return compare(run, model, tokenizer, task, folder, quantized=True)
        except RunError as problem:
            if number == len(ways) - 1:
                raise
            say(f"note     {problem.message}; once more, {ways[number + 1][0]}")
    raise AssertionError("the last way returns or raises")


def compare(run: str, model: Any, tokenizer: Any, task: str, folder: Path, quantized: bool) -> list[str]:
    """Run the files in `folder` in onnxruntime beside the model, on made-up inputs and on the rows of `run`.

    Returns what was found, in words; raises RunError where it is more than the precision explains.
    """
    auto_class, kind = TASKS[task].auto_class, "int8" if quantized else "f32"
    forward = onnx_compare.forward_of(model, folder, auto_class)
    made_up = onnx_compare.probe(model, forward, onnx_file.segmented(model, tokenizer), auto_class)
    said = [f"made-up inputs of several shapes: {_shown(made_up)}"]
    limit = LOGITS
    if not quantized and made_up.logits > LOGITS:
        rounding = onnx_compare.rounding(model, onnx_file.segmented(model, tokenizer), auto_class).logits
        said.append(f"PyTorch in f32 differs from itself in f64 by up to {rounding:.1e}")
        limit = max(LOGITS, 2 * rounding)
    wrong = [] if quantized else _too_far(made_up, limit)
    try:
        found = onnx_compare.on_rows(run, model, forward)
    except UserError as problem:
        said.append(f"no rows were compared: {problem.message}")
        wrong += _too_unequal(made_up) if quantized else []
    else:
        said.append(f"{found.rows} of the run's data: {_shown(found.agreement)}")
        wrong += _too_unequal(found.agreement) if quantized else _too_far(found.agreement, limit)
        for key in (key for key in found.ours if key.endswith(f"_{found.metric}")):
            said.append(f"{key}: {found.ours[key]:.6g} in PyTorch, {found.theirs[key]:.6g} in onnxruntime")
            if not _near(key, found.ours[key], found.theirs[key], task):
                wrong.append(said[-1])
    if wrong:
        raise RunError(
            f"{kind} does not compute what the model does: {'; '.join(wrong)}",
            "nothing is left of it" + ("; leave --quantize out" if quantized else ""),
        )
    return [f"compared in onnxruntime ({kind}), {line}" for line in said]


def _shown(agreement: onnx_compare.Agreement) -> str:
    return (
        f"logits differ by at most {agreement.logits:.1e}, {agreement.share:.2%} of {agreement.count:,} best are equal"
    )


def _too_far(agreement: onnx_compare.Agreement, limit: float) -> list[str]:
    if agreement.logits <= limit:
        return []
    return [f"logits differ by up to {agreement.logits:.1e} (at most {limit:.2g})"]


def _too_unequal(agreement: onnx_compare.Agreement) -> list[str]:
    if agreement.share >= EQUAL and agreement.logits == agreement.logits:
        return []
    return [f"{agreement.share:.2%} of {agreement.count:,} best are equal (at least {EQUAL:.0%})"]


def _near(key: str, ours: float, theirs: float, task: str) -> bool:
    if key.endswith(("_perplexity", "_loss")):
        return abs(theirs - ours) <= PERPLEXITY * abs(ours)
    return abs(theirs - ours) * (1 if task in OF_HUNDRED else 100) <= POINTS
