"""Load a model that predicts in fp32, with weights in bf16, or in int8: in onnxruntime, from a file made once."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmkit import disk, hub, tasks
from llmkit.errors import UserError, say
from llmkit.recipe.tasks import TASKS

if TYPE_CHECKING:
    from llmkit.models.quantization import Precision as Quantized

Precision = Literal["bf16", "fp32"]
# Models that read and do not write: one forward pass from tokens to logits.
IN_INT8 = ("text-classification", "token-classification", "question-answering", "multiple-choice", "masked-lm")


class InOnnxruntime:
    """A model that onnxruntime computes, in place of transformers': its weights are not read."""

    def __init__(self, folder: Path, task: str) -> None:
        import torch
        from transformers import AutoConfig

        from llmkit.export import onnx_compare

        self.device = torch.device("cpu")
        self.config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        self._forward = onnx_compare.forward_of(None, folder, TASKS[task].auto_class)

    def __call__(self, **inputs: Any) -> Any:
        return self._forward(**inputs)


def load(name: str, task: str, quantize: "Quantized | None" = None, precision: Precision | None = None) -> Any:
    """Load a model of a task that predicts; say what it computes in where that was asked for.

    Args:
        name: A run, a checkpoint, a folder or a Hub id.
        task: What it predicts.
        quantize: "int8", in onnxruntime on a CPU; None does not quantize.
        precision: What its weights are in; None: fp32 on a CPU, on a GPU what they were saved in.

    Raises:
        UserError: The task, or this machine, has no such precision.
    """
    from llmkit.models import loading

    if quantize is not None:
        check(name, task, quantize, precision)
        model = InOnnxruntime(folder(name, task), task)
        say(f"model    {name} ({task}, in int8)")
        return model
    options = {}
    if precision is not None:
        from llmkit.training.arguments import weights_in

        options = weights_in(precision)
        say(f"model    {name} ({task}, weights in {precision})")
    return loading.load_model(name, tasks.model_class(task), from_pretrained_options=options)


def check(name: str, task: str, quantize: "Quantized", precision: Precision | None = None) -> None:
    """Raise UserError where a model cannot predict in int8 here."""
    import torch

    from llmkit.export import export

    if quantize != "int8":
        raise UserError(f"--quantize {quantize} is for models that write text", "--quantize int8, or leave it out")
    if precision == "bf16":
        raise UserError("--quantize and --precision bf16 cannot be combined", "leave one of them out")
    if task not in IN_INT8:
        raise UserError(
            f"`{name}` is a model for {task}: in int8 there are {', '.join(IN_INT8)}",
            "leave --quantize out; where the processor is fast at it: --precision bf16",
        )
    if torch.cuda.is_available():
        raise UserError("--quantize int8 predicts on a CPU, and there is a GPU here", "leave it out: --precision bf16")
    export.need("onnx", *export.ONNX, what="--quantize int8")


def folder(name: str, task: str) -> Path:
    """Return the folder of a model's int8 ONNX file, which is made and compared with the model once and then kept.

    Raises RunError, and leaves nothing, where it does not compute what the model does.
    """
    from llmkit.data.text.pack import is_whole, new_cache_entry
    from llmkit.export import export, onnx_model

    kept = place(name, task, "onnx_file", "onnx_model")
    if not is_whole(kept, "the model in int8"):
        say("int8     made and compared with the model once; it is kept")
        with export.whole(name) as model, new_cache_entry(kept, sealed=True) as draft:
            said = onnx_model.write(name, model, task, draft, quantize=True)
        for line in said[:-1]:  # the last is for who exports
            say(f"int8     {line}")
    return kept


def place(name: str, use: str, *modules: str) -> Path:
    """Return where the cache keeps the model `name` in int8 for a `use`.

    It is named by a hash of the weights, and of what makes and runs the file: packages, and `modules` of llmkit.export.
    """
    from llmkit.data.files import digest
    from llmkit.export import export, onnx_file
    from llmkit.models import loading

    made_by = [version(package) for package in ("llmkit", "torch", "transformers", *export.ONNX)]
    made_by += [disk.checksum(Path(export.__file__).with_name(f"{module}.py")) for module in modules]
    with hub.loading(name, "model"):
        key = digest(*loading.identity(name), use, made_by, onnx_file.adds_up_bytes())
    return disk.cache_dir() / f"int8-{key}"


def in_int8(
    name: str, task: str, quantize: "Quantized" = "int8", precision: Precision | None = None
) -> Callable[[Any], AbstractContextManager[None]]:
    """Return what lets onnxruntime compute, in int8, what the forward pass of the model `name` does meanwhile.

    Raises what `check` and `folder` do.
    """
    check(name, task, quantize, precision)
    from llmkit.export import onnx_compare

    forward = onnx_compare.forward_of(None, folder(name, task), TASKS[task].auto_class)
    return lambda model: onnx_compare.replaced(model, forward)
