"""Export a model to the file of another engine: written beside its place, compared, and only then put there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from llmkit import hub, temporary
from llmkit.data.output import check_folder, new_folder
from llmkit.errors import UserError, in_bytes, say
from llmkit.runs.finished import check_model, one_task_of

Format = Literal["gguf", "onnx"]
PRECISIONS = ("f32", "f16", "bf16", "q8_0")
MODELFILE = "Modelfile"
ONNX = ("onnx", "onnxscript", "onnxruntime")  # packages of the extra of that name


def export(run: str, format: Format, output: str, precision: str | None = None, quantize: str | None = None) -> None:
    """Write the model of `run` (a run, a checkpoint, a folder or a Hub id) into the new folder `output`.

    An adapter is merged first. The files are read back and compared with the model; RunError, and no folder, where they
    differ by more than the precision explains.

    Args:
        run: The model.
        format: "gguf" or "onnx".
        output: A folder that is new or empty.
        precision: One of `PRECISIONS`; None is f16 for GGUF, and f32, the only one, for ONNX.
        quantize: "int8" or None; for ONNX.

    Raises:
        UserError: The format has no place for the model, or `output` cannot be written.
    """
    target = check_folder(output)
    check_model(run)
    if format == "onnx":
        if precision not in (None, "f32"):
            raise UserError(
                f"--precision {precision} is for GGUF: ONNX is written in f32", "leave it out, or add --quantize int8"
            )
        need("onnx", *ONNX)
        task = _task(run)
    else:
        if quantize is not None:
            raise UserError("--quantize is for ONNX", "the eight bits of GGUF: --precision q8_0")
        need("export", "gguf")
    with whole(run) as model, new_folder(target, output) as draft:
        if format == "onnx":
            said = _onnx(run, model, task, draft, quantize == "int8")
        else:
            precision = precision or "f16"
            said = _gguf(model, draft, precision, f"{Path(run).resolve().name}-{precision}.gguf")
    for file in sorted(target.iterdir()):
        say(f"{in_bytes(file.stat().st_size):>8}  {Path(output) / file.name}")
    say(*said)


def _task(run: str) -> str:
    """Return the task of a model, and refuse one that is of no use elsewhere."""
    task = one_task_of(run)
    if task == "replaced-token-detection":
        raise UserError(
            f"`{run}` only detects which tokens of a text were replaced: it is meant to be fine-tuned",
            f"llmkit finetune RECIPE model.name={run}; then export that",
        )
    return task


def _onnx(run: str, model: str, task: str, folder: Path, quantize: bool) -> list[str]:
    from llmkit.export import onnx_model

    return onnx_model.write(run, model, task, folder, quantize)


def _gguf(model: str, folder: Path, precision: str, name: str) -> list[str]:
    from llmkit.export import gguf_file

    found = gguf_file.write(model, folder / name, precision, folder / MODELFILE)  # type: ignore[arg-type]
    return [
        f"compared on {found['tokens']:.0f} tokens that the model wrote: logits differ by at most "
        f"{found['logits']:.1e}, {found['equal']:.2%} of the best tokens are equal, "
        f"perplexity {found['perplexity']:+.3%}"
    ]


def need(extra: str, *packages: str, what: str = "exporting") -> None:
    """Raise UserError where the packages of an extra are not installed."""
    from importlib.util import find_spec

    if missing := [package for package in packages if find_spec(package) is None]:
        raise UserError(f"{what} needs the package {missing[0]}", f"pip install 'llmkit[{extra}]'")


@contextmanager
def whole(run: str) -> Iterator[str]:
    """Yield a model without an adapter: `run` itself, or a folder in which the two are merged."""
    from llmkit.models import loading, merge

    with hub.loading(run, "model"):
        adapter = loading.adapter_settings(run, hub.commit(run))
    if adapter is None:
        yield run
        return
    with temporary.folder() as folder:
        merged = folder / "merged"
        merge.merge(run, str(merged))
        yield str(merged)
