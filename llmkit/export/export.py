"""Export a model to the file of another engine: written beside its place, compared, and only then put there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from llmkit import hub, temporary
from llmkit.data.output import check_folder, new_folder
from llmkit.errors import UserError, in_bytes, say
from llmkit.runs.finished import check_model

Format = Literal["gguf"]
PRECISIONS = ("f32", "f16", "bf16", "q8_0")
MODELFILE = "Modelfile"


def export(run: str, format: Format, output: str, precision: str) -> None:
    """Write the model of `run` (a run, a checkpoint, a folder or a Hub id) into the new folder `output`.

    An adapter is merged first. The file is read back and compared with the model; RunError, and no folder, where they
    differ by more than the precision explains.

    Args:
        run: The model.
        format: "gguf".
        output: A folder that is new or empty.
        precision: One of `PRECISIONS`.

    Raises:
        UserError: The format has no place for the model, or `output` cannot be written.
    """
    target = check_folder(output)
    check_model(run)
    _need("gguf")
    with _whole(run) as model, new_folder(target, output) as draft:
        found = _gguf(model, draft, precision, f"{Path(run).resolve().name}-{precision}.gguf")
    for file in sorted(target.iterdir()):
        say(f"{in_bytes(file.stat().st_size):>8}  {Path(output) / file.name}")
    say(
        f"compared on {found['tokens']:.0f} tokens that the model wrote: logits differ by at most "
        f"{found['logits']:.1e}, {found['equal']:.2%} of the best tokens are equal, "
        f"perplexity {found['perplexity']:+.3%}"
    )


def _gguf(model: str, folder: Path, precision: str, name: str) -> dict[str, float]:
    from llmkit.export import gguf_file

    return gguf_file.write(model, folder / name, precision, folder / MODELFILE)  # type: ignore[arg-type]


def _need(package: str) -> None:
    """Raise UserError where the extra is not installed."""
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise UserError(f"exporting needs the package {package}", "pip install 'llmkit[export]'")


@contextmanager
def _whole(run: str) -> Iterator[str]:
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
