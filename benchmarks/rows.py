"""llmkit's reading and preparing of rows for text classification beside `datasets.load_dataset` and `map(tokenize)`.

    python benchmarks/rows.py [--rows 1000000] [--rounds 3] [--formats csv jsonl] [--data FOLDER] [--tokenizer FOLDER]

Both read the same file of `text` and `label`, cut to 128 tokens, and give each label its number: llmkit from opening
the file to the data set that a trainer draws from; `datasets` from `load_dataset` with an empty cache to the mapped
table. They take turns, each in a process of its own, with as many threads. Their clock starts behind the imports and
the loading of the tokenizer. Memory that is not backed by a file is sampled from outside: the most of it, less what
there was when the clock started. `quarter` is what a quarter of the rows takes.

The texts are 8 to 20 words out of 20,000, some of stories.txt and most made up, the frequent ones by Zipf's law, in
three classes; or FOLDER's rows.csv and rows.jsonl. The tokenizer is a WordPiece of 8,000 trained on them, or FOLDER's.
"""

import argparse
import csv
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

STORIES = Path(__file__).parents[1] / "recipes" / "tiny" / "stories.txt"
LENGTH = 128
SAMPLED = 0.02  # seconds between two looks at a process's memory
SIDES = ("llmkit", "datasets")


def write_rows(folder: Path, number: int) -> None:
    draw = random.Random(0)
    syllables = [consonant + vowel for consonant in "bcdfghjklmnprstvwz" for vowel in "aeiou"]
    made_up = ("".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(40_000))
    words = list(dict.fromkeys([*re.findall(r"[A-Za-z']+", STORIES.read_text()), *made_up]))[:20_000]
    weights = [0.0]
    for rank in range(1, len(words) + 1):
        weights.append(weights[-1] + 1 / rank)
    with (folder / "rows.csv").open("w", newline="") as table, (folder / "rows.jsonl").open("w") as lines:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["text", "label"])
        for _ in range(number):
            drawn = draw.choices(words, cum_weights=weights[1:], k=draw.randint(8, 20))
            text = " ".join(drawn).capitalize() + draw.choice(".....!?")
            label = draw.choice(["negative", "neutral", "positive"])
            writer.writerow([text, label])
            lines.write(json.dumps({"text": text, "label": label}) + "\n")


def train_tokenizer(data: Path, folder: Path) -> None:
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    made = BertWordPieceTokenizer()
    with (data / "rows.csv").open() as lines:
        made.train_from_iterator(islice(lines, 100_000), vocab_size=8_000, show_progress=False)
    BertTokenizerFast(tokenizer_object=made._tokenizer).save_pretrained(folder)


def llmkit_prepares(file: Path, tokenizer: Any) -> int:
    from transformers import BertConfig

    from llmkit.data.rows import table
    from llmkit.recipe.data_tables import ClassificationData
    from llmkit.tasks import text_classification as task

    data = ClassificationData(path=str(file))
    rows = table.tables(data, 0).train
    assert rows is not None
    columns = task.resolve_columns(data, rows)
    train = task.encode(rows, columns, tokenizer, data, LENGTH)
    label_spec = task.resolve_labels(data, columns, train, {}, BertConfig(), False)
    return len(task.examples(train, label_spec, False))


def datasets_prepares(file: Path, tokenizer: Any) -> int:
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        kind = "csv" if file.suffix == ".csv" else "json"
        rows = datasets.load_dataset(kind, data_files=str(file), split="train", cache_dir=cache)
        rows = rows.class_encode_column("label")
        read = rows.map(lambda b: tokenizer(b["text"], truncation=True, max_length=LENGTH), batched=True)
        return len(read)


def side(name: str, file: Path, folder: Path) -> None:
    """Prepare once; print the rows a second, and the memory in use before."""
    import datasets  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoTokenizer, BertConfig  # noqa: F401

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    import llmkit.tasks.text_classification  # noqa: F401

    before, start = memory(os.getpid()), time.perf_counter()
    number = (llmkit_prepares if name == "llmkit" else datasets_prepares)(file, tokenizer)
    print(json.dumps([number / (time.perf_counter() - start), before]))


def memory(process: int) -> int:
    """Bytes that a process holds outside of files."""
    found = re.search(r"RssAnon:\s*(\d+)", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def measure(name: str, file: Path, folder: Path) -> tuple[float, float]:
    """Rows a second, and the most memory in MB above that at the start."""
    words = [sys.executable, __file__, "--side", name, "--data", str(file), "--tokenizer", str(folder)]
    most = 0
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        while process.poll() is None:
            most = max(most, memory(process.pid))
            time.sleep(SAMPLED)
        assert process.stdout is not None
        if process.returncode:
            raise SystemExit(f"{' '.join(words)} failed")
        rate, before = json.loads(process.stdout.read().splitlines()[-1])
    return rate, (most - before) / 1e6


def measure_quarter(name: str, file: Path, folder: Path) -> float:
    """MB above the start for the first quarter of a file."""
    with tempfile.TemporaryDirectory() as scratch:
        part = Path(scratch) / file.name
        with file.open() as lines:
            number = sum(1 for _ in lines) // 4
        with file.open() as lines, part.open("w") as out:
            out.writelines(islice(lines, number))
        return measure(name, part, folder)[1]


def compare(data: Path, folder: Path, formats: list[str], rounds: int) -> None:
    for kind in formats:
        file = data / f"rows.{kind}"
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
        for _ in range(rounds):
            for name, each in found.items():
                each.append(measure(name, file, folder))
        rates = {name: statistics.median(rate for rate, _ in each) for name, each in found.items()}
        for name, each in found.items():
            little, much = measure_quarter(name, file, folder), statistics.median(size for _, size in each)
            print(f"{kind}, {name}: {rates[name]:,.0f} rows/s, {much:,.0f} MB, and {little:,.0f} MB for a quarter")
        ratios = ", ".join(f"{a / b:.2f}" for (a, _), (b, _) in zip(*found.values(), strict=True))
        print(f"{kind}: {rates['llmkit'] / rates['datasets']:.2f} times as fast ({ratios})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--formats", nargs="+", default=["csv", "jsonl"])
    parser.add_argument("--data", type=Path, help="a folder with rows.csv and rows.jsonl")
    parser.add_argument("--tokenizer", type=Path, help="a folder with a tokenizer.json")
    parser.add_argument("--side", choices=SIDES, help="prepare the file --data once, and say how fast")
    options = parser.parse_args()
    if options.side:
        side(options.side, options.data, options.tokenizer)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.data is None:
            write_rows(folder, options.rows)
        data, tokenizer = options.data or folder, options.tokenizer or folder / "tokenizer"
        if options.tokenizer is None:
            train_tokenizer(data, tokenizer)
        compare(data, tokenizer, options.formats, options.rounds)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
