"""llmkit's preparation of text beside `tokenizers` alone and beside what transformers' `run_clm.py` does.

    python benchmarks/tokenize_text.py [--megabytes 50] [--rounds 3] [--text FILE] [--tokenizer FOLDER]

(a) llmkit: documents -> tokens in a new cache, checksums and fsync included. (b) `tokenizers` alone: the same batches
through `encode_batch_fast`, the result dropped. (c) `datasets.map(tokenize, batched=True)` and the `map` that groups
texts into blocks of 1024, in one process; it gets 10 MB at most, for it is slow. They take turns, so that a machine
whose speed drifts does not favour one of them; MB a second of processor time, of all threads together, stand beside MB
a second of the clock, since they say more where others use the machine.

The text is that of recipes/tiny/stories.txt over and over, every seventh word or so replaced by one of 30,000 made up,
or FILE's; the tokenizer a byte-level BPE of 32,000 trained on 10 MB of it, or that of FOLDER. Prints the medians, their
ratios, and the peak memory of (a) in a process of its own for a tenth of the text and for all of it.
"""

import argparse
import os
import platform
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

STORIES = Path(__file__).parents[1] / "recipes" / "tiny" / "stories.txt"
BLOCK = 1024
SLOW = 10  # megabytes that (c) gets at most


def write_text(file: Path, megabytes: int) -> None:
    """Deterministic text, one story a line."""
    draw = random.Random(0)
    syllables = [consonant + vowel for consonant in "bcdfghjklmnprstvwz" for vowel in "aeiou"]
    made_up = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(30_000)]
    parts = re.findall(r"[A-Za-z]+|[^A-Za-z]+", STORIES.read_text())
    left = megabytes * 1_000_000
    with file.open("w") as out:
        while left > 0:
            varied = (draw.choice(made_up) if p.isalpha() and draw.random() < 0.15 else p for p in parts)
            left -= out.write("".join(varied)[:left])


def documents_of(file: Path, megabytes: float) -> Any:
    """The lines of the first so many MB of the file, read anew each time."""
    from llmkit.data.text.documents import Documents

    def read() -> Iterator[str]:
        left = megabytes * 1e6
        with file.open() as lines:
            for line in lines:
                if left <= 0:
                    return
                left -= len(line.encode())
                yield line.rstrip("\n")

    return Documents(read, str((file, megabytes)), f"`{file.name}`")


def load_tokenizer(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    names = ["input_ids", "attention_mask"]  # as GPT-2 has them
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), model_input_names=names)


def train_tokenizer(file: Path, folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(documents_of(file, 10), trainer)
    made.save(str(folder / "tokenizer.json"))


def llmkit_prepares(documents: Any, tokenizer: Any) -> None:
    from llmkit.data.text import token_cache

    with tempfile.TemporaryDirectory() as folder:
        token_cache.cache_dir = lambda: Path(folder)
        token_cache.tokenize_documents(documents, tokenizer, [0])


def tokenizers_alone(documents: Any, tokenizer: Any) -> None:
    from llmkit.data.text import tokenize

    batch: list[str] = []
    held = 0
    for text in documents:
        batch.append(text)
        held += len(text) + tokenize.OVERHEAD
        if held >= tokenize.BATCH:
            tokenizer.backend_tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            batch, held = [], 0
    tokenizer.backend_tokenizer.encode_batch_fast(batch, add_special_tokens=False)


def datasets_map(documents: Any, tokenizer: Any) -> None:
    import datasets

    def group(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: list(chain(*lists)) for name, lists in rows.items()}
        end = len(joined["input_ids"]) // BLOCK * BLOCK
        blocks = {name: [ids[i : i + BLOCK] for i in range(0, end, BLOCK)] for name, ids in joined.items()}
        return {**blocks, "labels": blocks["input_ids"].copy()}

    with tempfile.TemporaryDirectory() as folder:
        texts = datasets.Dataset.from_dict({"text": list(documents)})
        tokenized = texts.map(
            lambda rows: tokenizer(rows["text"]),
            batched=True,
            remove_columns=["text"],
            cache_file_name=f"{folder}/tokenized.arrow",
        )
        tokenized.map(group, batched=True, cache_file_name=f"{folder}/grouped.arrow")


def rates(work: Callable[[Any, Any], None], file: Path, megabytes: float, tokenizer: Any) -> tuple[float, float]:
    """MB a second of the clock, and MB a second of processor time."""
    documents = documents_of(file, megabytes)
    start, used = time.perf_counter(), time.process_time()
    work(documents, tokenizer)
    return megabytes / (time.perf_counter() - start), megabytes / (time.process_time() - used)


def peak_memory(file: Path, megabytes: float, folder: Path) -> int:
    words = [sys.executable, __file__, "--peak", str(megabytes), "--text", str(file), "--tokenizer", str(folder)]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def compare(file: Path, folder: Path, megabytes: int, rounds: int) -> None:
    import datasets

    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(folder)
    tokenizer.model_max_length = 10**9
    sides = {
        "llmkit": (llmkit_prepares, megabytes),
        "tokenizers alone": (tokenizers_alone, megabytes),
        "datasets.map": (datasets_map, min(SLOW, megabytes)),
    }
    rates(tokenizers_alone, file, 1, tokenizer)  # the tokenizer's own cache of words is filled
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for n in range(rounds):
        for name, (work, size) in sides.items():
            found[name].append(rates(work, file, size, tokenizer))
        said = (f"{name} {each[-1][0]:.2f} ({each[-1][1]:.2f})" for name, each in found.items())
        print(f"round {n + 1}: MB/s (MB a second of processor time): {', '.join(said)}", flush=True)
    for kind, what in enumerate(("MB/s", "MB a second of processor time")):
        medians = {name: statistics.median(each[kind] for each in found[name]) for name in sides}
        print(f"medians of {rounds}, {what}: " + ", ".join(f"{name} {median:.2f}" for name, median in medians.items()))
        for name in list(sides)[1:]:
            print(f"  llmkit / {name}: {medians['llmkit'] / medians[name]:.2f}")
    little, much = (peak_memory(file, size, folder) for size in (megabytes / 10, megabytes))
    print(f"peak memory of llmkit: {little} MB for {megabytes / 10:g} MB of text, {much} MB for {megabytes}")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="a folder with a tokenizer.json")
    parser.add_argument("--peak", type=float, help="prepare so many MB and print the peak memory in MB")
    options = parser.parse_args()
    if options.peak:
        llmkit_prepares(documents_of(options.text, options.peak), load_tokenizer(options.tokenizer))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = options.text or folder / "text.txt"
        if options.text is None:
            write_text(text, options.megabytes)
        if options.tokenizer is None:
            train_tokenizer(text, folder)
        compare(text, options.tokenizer or folder, options.megabytes, options.rounds)


if __name__ == "__main__":
    main()
