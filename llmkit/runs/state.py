"""What training goes on from beside the weights, in files without code: JSON, and safetensors for what is large."""

import json
import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file


def write(state: Any, folder: Path, name: str) -> None:
    """Write nested dicts, lists and tuples of numbers, words and tensors: `name.json`, and `name.safetensors`.

    What holds anything else (an optimizer's own kind of tensor) becomes `name.pt`, which is read with `weights_only`.
    """
    tensors: dict[str, torch.Tensor] = {}
    try:
        structure = json.dumps(_encode(state, tensors))
    except TypeError:
        torch.save(state, folder / f"{name}.pt")
        return
    if tensors:
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(structure)


def read(folder: Path, name: str) -> Any:
    """What `write` wrote; tensors on the CPU. Raises FileNotFoundError."""
    if (folder / f"{name}.pt").is_file():
        return torch.load(folder / f"{name}.pt", map_location="cpu", weights_only=True)
    structure = json.loads((folder / f"{name}.json").read_text())
    file = folder / f"{name}.safetensors"
    return _decode(structure, load_file(file) if file.is_file() else {})


def _encode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON that tells a tuple from a list and a number from a word as a key; tensors are put aside under a number."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if type(value) in (torch.Tensor, torch.nn.Parameter):
        tensors[str(len(tensors))] = value.detach().contiguous()
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(value, dict):
        if not all(isinstance(key, str | int) for key in value):
            raise TypeError("a key that is neither a word nor a number")
        return {"dict": [[key, _encode(each, tensors)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        inside = [_encode(each, tensors) for each in value]
        return inside if isinstance(value, list) else {"tuple": inside}
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_decode(each, tensors) for each in value["tuple"])
    return {key: _decode(each, tensors) for key, each in value["dict"]}


def random_state() -> dict[str, Any]:
    """Where the random numbers of this process stand: Python's, NumPy's, torch's and the accelerator's."""
    name, keys, *rest = cast(tuple[Any, ...], np.random.get_state())
    return {"python": random.getstate(), "numpy": [name, torch.from_numpy(keys), *rest], **torch_random_state()}


def torch_random_state() -> dict[str, torch.Tensor]:
    """Those of torch alone, from which a step draws: cheap enough to be kept at each."""
    found = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def set_random_state(found: dict[str, Any]) -> None:
    """Go on drawing from where `random_state` was taken."""
    name, keys, *rest = found["numpy"]
    random.setstate(found["python"])
    np.random.set_state((name, keys.numpy(), *rest))
    torch.set_rng_state(found["torch"])
    if "cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state(found["cuda"])
