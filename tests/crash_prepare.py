"""Prepare a planted corpus in many ways, and killed ten times: every file of the cache must have the same bytes.

`make crash` runs all parts on a small corpus; `python tests/crash_prepare.py --folder F --size 100 killed` runs one on
100 MB. The part `ray` needs the package.
"""

import argparse
import hashlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import planted_text

RECIPE = """
task = "causal-lm"
[model.config]
model_type = "gpt2"
n_layer = 1
n_head = 2
n_embd = 32
n_positions = 128
[tokenizer]
type = "byte-bpe"
vocab_size = 2048
[data]
path = "planted.jsonl"
validation_fraction = 0.01
block_size = 128
global_batch_size = 8
[data.clean]
repair = true
control_characters = true
whitespace = true
gopher = true
gopher_min_words = 20
gopher_max_mean_word_length = 12
personal_data = ["email", "phone"]
exact_duplicates = true
overlap = true
near_duplicates = true
[trainer]
max_steps = 1
per_device_train_batch_size = 8
"""
KILLS = 10
# Each way to prepare the corpus: its options, with the size of a shard as a share of the corpus.
PARTS = {
    "one": (["--workers", "1"], 0.17),
    "two": (["--workers", "2"], 0.17),
    "small": (["--workers", "2"], 0.013),
    "large": (["--workers", "1"], 2.0),
    "ray": (["--engine", "ray"], 0.06),
    "killed": (["--workers", "2"], 0.013),
    "stopped": (["--workers", "2"], 0.05),
}


def tell(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def start(name: str, options: list[str], shard: float) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "llmkit", "prepare", "recipe.toml", *options, "--shard-size", f"{shard:.4f}"]
    with Path(f"{name}.log").open("ab") as log:
        return subprocess.Popen(words, env={**os.environ, "HF_HOME": str(Path(name).resolve())}, stdout=log, stderr=log)


def cached(name: str) -> dict[str, str]:
    """Return the hash of each file of a cache but its locks, which are empty."""
    files = sorted(file for file in Path(name, "llmkit").rglob("*") if file.is_file() and "lock" not in file.name)
    return {str(file.relative_to(name)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def pieces(name: str) -> dict[str, int]:
    """Count what is done of a work: shards cleaned, ranges and shards compared, parts tokenized."""
    cache = Path(name, "llmkit")
    journals = (journal.read_text().count("\n") for journal in cache.glob("*/parts.jsonl"))
    return {
        "corpora cleaned": len(list(cache.glob("*/text.jsonl"))),
        "shards cleaned": len(list(cache.glob("*.work/clean/[0-9]*"))),
        "ranges compared": len(list(cache.glob("*.work/near-*/[ap]*"))),
        "parts tokenized": sum(journals),
    }


def killed(name: str, options: list[str], shard: float) -> None:
    """Kill the work KILLS times by SIGKILL, each time when some more pieces of it are done, in the midst of others."""
    rng = random.Random(1)
    for number in range(KILLS):
        before, more = pieces(name), rng.randint(1, 12)
        work = start(name, options, shard)
        while work.poll() is None and sum(max(n - before[what], 0) for what, n in pieces(name).items()) < more:
            time.sleep(0.05)
        time.sleep(rng.random())
        workers = children(work)
        work.send_signal(signal.SIGKILL)
        tell(f"kill {number + 1}: {', '.join(f'{count} {what}' for what, count in pieces(name).items())}")
        work.wait()
        deadline = time.monotonic() + 20  # they are told at once, but the machine may be busy
        while any(Path(f"/proc/{worker}").exists() for worker in workers):
            if time.monotonic() > deadline:
                raise SystemExit(f"of the processes {workers} some outlive their parent")
            time.sleep(0.1)
    if (code := start(name, options, shard).wait()) != 0:
        raise SystemExit(f"exit code {code}: {Path(f'{name}.log').read_text()[-2000:]}")


def children(work: subprocess.Popen[bytes]) -> list[int]:
    """List the processes that a work has started."""
    file = Path(f"/proc/{work.pid}/task/{work.pid}/children")
    return [int(number) for number in file.read_text().split()] if file.exists() else []


def stopped(name: str, options: list[str], shard: float) -> None:
    """Kill a worker, then stop the work by SIGTERM: both are said, and it goes on."""
    for kill, code in ((True, 1), (False, 75)):
        begun = sum(pieces(name).values())
        work = start(name, options, shard)
        while work.poll() is None and sum(pieces(name).values()) < begun + 2:
            time.sleep(0.05)
        if kill:
            os.kill(children(work)[-1], signal.SIGKILL)
        else:
            work.send_signal(signal.SIGTERM)
        if work.wait() != code:
            raise SystemExit(f"exit code {work.returncode} and not {code}: {Path(f'{name}.log').read_text()[-2000:]}")
    if "a worker process was killed" not in Path(f"{name}.log").read_text():
        raise SystemExit(f"nothing was said of the worker: {Path(f'{name}.log').read_text()[-2000:]}")
    if (code := start(name, options, shard).wait()) != 0:
        raise SystemExit(f"exit code {code}: {Path(f'{name}.log').read_text()[-2000:]}")


HOW = {"killed": killed, "stopped": stopped}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--size", type=float, default=6, help="megabytes")
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="llmkit-crash-"))
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    if not Path("planted.jsonl").exists():
        planted_text.write(Path("planted.jsonl"), int(args.size * 1e6))
    Path("recipe.toml").write_text(RECIPE)
    for name in args.parts:
        options, share = PARTS[name]
        if name == "ray" and find_spec("ray") is None:
            tell("ray: not installed")
            continue
        begun, spent = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        if name in HOW:
            HOW[name](name, options, share * args.size)
        elif (code := start(name, options, share * args.size).wait()) != 0:
            raise SystemExit(f"{name}: exit code {code}: {Path(f'{name}.log').read_text()[-2000:]}")
        seconds, now = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
        files = cached(name)
        if not Path("wanted.json").exists():
            Path("wanted.json").write_text(json.dumps(files))
        cpu = now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime
        wanted = json.loads(Path("wanted.json").read_text())
        going_on = len(re.findall("going on|continuing", Path(f"{name}.log").read_text()))
        tell(
            f"{name}: {' '.join(options)}, shards of {share * args.size:.2f}M characters: {len(files)} files, "
            f"{'equal bytes' if files == wanted else 'OTHER BYTES'}; {seconds:.0f} s, {cpu:.0f} s of CPU, "
            f"{now.ru_maxrss / 1e3:.0f} MB at the peak of a process" + f", went on {going_on} times" * (going_on > 0)
        )
        if files != wanted:
            different = sorted(file for file in {*files, *wanted} if files.get(file) != wanted.get(file))
            raise SystemExit(f"{name} differs in {different}")
    tell(f"all files are in {folder}")


if __name__ == "__main__":
    main()
