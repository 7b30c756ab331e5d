"""Save and load training state beside the weights, in files without code: JSON, and safetensors for tensors."""

import json
import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import xxhash
from safetensors.torch import load_file

from llmkit import disk, verified

# As safetensors calls them; what is of another type goes into `name.pt`.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write(state: Any, folder: Path, name: str) -> None:
    """Write nested dicts, lists and tuples of numbers, strings and tensors to `name.json` and `name.safetensors`.

    State that holds anything else (an optimizer's own kind of tensor) goes to `name.pt`, which is loaded with
    `weights_only`.
    """
    tensors: dict[str, torch.Tensor] = {}
    try:
        structure = json.dumps(_encode(state, tensors))
    except TypeError:
        torch.save(state, folder / f"{name}.pt")
        return
    if tensors:
        _save(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(structure)


def read(folder: Path, name: str) -> Any:
    """Read what `write` wrote, tensors on the CPU; raise FileNotFoundError where there is nothing."""
    if (folder / f"{name}.pt").is_file():
        return torch.load(folder / f"{name}.pt", map_location="cpu", weights_only=True)
    structure = json.loads((folder / f"{name}.json").read_text())
    file = folder / f"{name}.safetensors"
    return _decode(structure, load_file(file) if file.is_file() else {})


def _save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Write tensors as `safetensors.torch.save_file` does, and hash them meanwhile: nobody reads them again for it.

    One tensor at a time is on the CPU. The format: the length of a header, 8 bytes; that header, JSON; the numbers.
    """
    in_order = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # each begins aligned
    header, end = dict[str, Any](), 0
    for name, tensor in in_order:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    content = xxhash.xxh3_128()
    with file.open("wb") as out:

        def put(data: Any) -> None:
            out.write(data)
            content.update(data)

        put(len(text).to_bytes(8, "little") + text)
        for _, tensor in in_order:
            put(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
        disk.sync(out)
    verified.written(file, content.hexdigest())


def _encode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Encode as JSON that tells tuples from lists and integer keys from strings; collect `tensors` by number."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if type(value) in (torch.Tensor, torch.nn.Parameter) and value.dtype in DTYPES:
        tensors[str(len(tensors))] = value.detach().contiguous()
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(value, dict):
        if not all(isinstance(key, str | int) for key in value):
            raise TypeError("a key that is neither a string nor a number")
        return {"dict": [[key, _encode(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_encode(item, tensors) for item in value]
        return items if isinstance(value, list) else {"tuple": items}
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_decode(item, tensors) for item in value["tuple"])
    return {key: _decode(item, tensors) for key, item in value["dict"]}


def random_state() -> dict[str, Any]:
    """Return the random states of this process: Python's, NumPy's, torch's and the accelerator's."""
    name, keys, *rest = cast(tuple[Any, ...], np.random.get_state())
    return {"python": random.getstate(), "numpy": [name, torch.from_numpy(keys), *rest], **torch_random_state()}


def torch_random_state() -> dict[str, torch.Tensor]:
    """Return torch's random states alone, from which a step draws: cheap enough to keep at each step."""
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_state(states: dict[str, Any]) -> None:
    """Restore the random states that `random_state` returned."""
    name, keys, *rest = states["numpy"]
    random.setstate(states["python"])
    np.random.set_state((name, keys.numpy(), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
