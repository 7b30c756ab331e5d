"""`llmkit pretrain recipes/shakespeare-char.toml` beside a plain PyTorch loop of the same model and steps.

    python benchmarks/shakespeare.py input.txt [PAIRS]

Both are timed as whole commands, in turn, so that a machine whose speed drifts does not favour one of them; medians and
the ratio of each pair are printed. Fails where the two did not do the same work.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
SPREAD = 0.03  # nats between two seeds of one side, generously


def timed(words: list[str], folder: Path) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stdout


def main(text: Path, pairs: int) -> None:
    ours: list[float] = []
    plain: list[float] = []
    for seed in range(1, pairs + 1):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            recipe = ["shakespeare-char", f"data.path={text.resolve()}", f"trainer.seed={seed}", "--output-dir", "run"]
            ours.append(timed([sys.executable, "-m", "llmkit", "pretrain", *recipe], folder)[0])
            record = json.loads((folder / "run/run.json").read_text())
            vocabulary = json.loads((folder / "run/config.json").read_text())["vocab_size"]
            loop = [sys.executable, str(HERE / "plain_loop.py"), str(text.resolve()), str(vocabulary), str(seed)]
            seconds, said = timed(loop, folder)
            plain.append(seconds)
        beside = json.loads(said)
        loss = record["metrics"]["eval_loss"]
        print(
            f"pair {seed}: llmkit {ours[-1]:.1f} s, eval_loss {loss:.4f}; plain loop {plain[-1]:.1f} s, "
            f"eval_loss {beside['eval_loss']:.4f}; ratio {ours[-1] / plain[-1]:.3f}",
            flush=True,
        )
        if record["parameters"] != beside["parameters"] or abs(loss - beside["eval_loss"]) > SPREAD:
            sys.exit("the two sides did not do the same work")
    ratio = statistics.median(a / b for a, b in zip(ours, plain, strict=True))
    print(
        f"median of {pairs}: llmkit {statistics.median(ours):.1f} s, plain loop {statistics.median(plain):.1f} s, "
        f"ratio {ratio:.3f} ({platform.processor() or platform.machine()}, {os.cpu_count()} cores)"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3)
