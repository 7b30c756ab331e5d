"""How much faster this processor trains in bf16 than in fp32: measured once by `llmkit doctor --measure`, and kept."""

import json
import os
import statistics
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
import xxhash

from llmkit.disk import cache_dir
from llmkit.errors import UserError
from llmkit.runs.directory import write_json
from llmkit.runs.environment import processor
from llmkit.speed import cpu

HIDDEN = (64, 128, 256, 384, 768, 1024)
TOKENS = (16, 64, 256, 1024, 4096)  # of a forward pass
LAYERS, HEAD, LENGTH = 2, 64, 64  # a head is HEAD wide, a row LENGTH tokens long at most
ROUNDS, SECONDS = 5, 0.1  # in each round, each side takes steps for so long, and one at least
MOST = 2e11  # operations of a step, above which it would take too long: at so many tokens a few more change nothing
# The layers' ratio from which bf16 is chosen. What lies outside the layers (embeddings, their gradients, the optimizer)
# takes as long in both: where it is half of a step, 1.15 become 1.07.
MARGIN = 1.15

Table = dict[tuple[int, int], float]  # by hidden size and tokens: the time of a step in fp32 over that in bf16


def machine() -> dict[str, Any]:
    """Return what the ratios depend on: processor, its instructions, PyTorch, and the threads of this process."""
    return {
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "limit": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def use_threads() -> None:
    """Take as many threads as a run in one process does."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cpu.share(1))


def file() -> Path:
    """Return where the table of this machine, and this number of threads, is kept."""
    return cache_dir() / f"bf16-{xxhash.xxh3_64_hexdigest(json.dumps(machine()).encode())}.json"


def kept() -> Table | None:
    """Return the table of this machine and this number of threads; None where nothing is measured."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(file().read_text())
        if content["machine"] == machine():
            return {(row["hidden"], row["tokens"]): float(row["speedup"]) for row in content["measured"]}
    return None


def keep(table: Table) -> Path:
    """Write the table of this machine; return where. Raises UserError where the cache cannot be written."""
    rows = [{"hidden": hidden, "tokens": tokens, "speedup": speedup} for (hidden, tokens), speedup in table.items()]
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        write_json(file(), {"machine": machine(), "measured": rows})
    except OSError as problem:
        raise UserError(
            f"the cache {cache_dir()} cannot be written: {problem.strerror}",
            "set HF_HOME to a folder that can be written",
        ) from problem
    return file()


def speedup(table: Mapping[tuple[int, int], float], hidden: int, tokens: float) -> float | None:
    """Return the least ratio of the measured sizes around a model's; None for one below all of them.

    Above the largest, its ratio holds: the larger the matrices, the more of a step is their products.
    """
    widths = _around(sorted({width for width, _ in table}), hidden)
    ratios: list[float] = []
    for width in widths:
        counts = _around(sorted(count for other, count in table if other == width), tokens)
        ratios += [table[width, count] for count in counts] or [0.0]
    return min(ratios, default=0.0) or None


def _around(sizes: Sequence[int], size: float) -> set[int]:
    """Return the sizes next to `size`, or itself; none where it is below all of them."""
    if not sizes or size < sizes[0]:
        return set()
    return {sizes[bisect_right(sizes, size) - 1], sizes[min(bisect_left(sizes, size), len(sizes) - 1)]}


def measure(tell: Callable[[int, int, float], None]) -> Table:
    """Time steps of small transformers in fp32 and, by turns, in bf16; `tell` each size and ratio."""
    table = {}
    for hidden in HIDDEN:
        for tokens in TOKENS:
            if 6 * 12 * LAYERS * hidden**2 * tokens > MOST:
                continue
            table[hidden, tokens] = round(_ratio(hidden, tokens), 3)
            tell(hidden, tokens, table[hidden, tokens])
    return table


def _ratio(hidden: int, tokens: int) -> float:
    """Return the median, over ROUNDS, of the time of a step in fp32 over that in bf16."""
    fp32, bf16 = _steps(hidden, tokens, nullcontext), _steps(hidden, tokens, _autocast)
    next(fp32), next(bf16)  # kernels are chosen, the optimizer's state is made
    return statistics.median(_seconds(fp32) / _seconds(bf16) for _ in range(ROUNDS))


def _autocast() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


def _seconds(steps: Iterator[None]) -> float:
    """Time a step: the mean of as many as SECONDS hold."""
    begun, number = time.perf_counter(), 0
    while not number or time.perf_counter() - begun < SECONDS:
        next(steps)
        number += 1
    return (time.perf_counter() - begun) / number


def _steps(hidden: int, tokens: int, precision: Callable[[], Any]) -> Iterator[None]:
    """Train layers of a small GPT-2 on numbers, a step at a time."""
    from transformers import GPT2Config, GPT2Model

    shape = {"n_layer": LAYERS, "n_embd": hidden, "n_head": hidden // HEAD, "vocab_size": 1, "n_positions": LENGTH}
    config = GPT2Config(**shape, bos_token_id=None, eos_token_id=None)
    with torch.random.fork_rng(devices=[]):
        model = GPT2Model(config).train()
        inputs = torch.randn(-(-tokens // LENGTH), min(tokens, LENGTH), hidden)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    while True:
        with precision():
            loss = model(inputs_embeds=inputs, use_cache=False).last_hidden_state.float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield
