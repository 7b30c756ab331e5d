"""Kill a sweep at random moments: the same line, given again, must end like a sweep that was left alone.

And a trial that halving promotes must equal, byte for byte, the same run left alone. `make crash` does all of it;
with a folder and the name of a part (whole, kill, end, halved) it can be done piece by piece.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUN = (
    *("finetune", str(ROOT / "recipes/tiny/ending.toml"), "data.max_train_samples=960", "data.max_eval_samples=200"),
    *("model.config.num_hidden_layers=1", "model.config.hidden_size=64", "model.config.intermediate_size=64"),
    *("trainer.logging_steps=5", "trainer.save_steps=20"),
)
SWEEP = ("--sweep", "trainer.learning_rate=1e-3,3e-3,1e-2", "--sweep", "trainer.weight_decay=0,0.1")
SEEDS = ("--seeds", "2")


def start(*words: str) -> subprocess.Popen[bytes]:
    with Path(f"{words[words.index('--output-dir') + 1]}.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "llmkit", *words], stdout=log, stderr=log)


def left_alone(*words: str) -> None:
    begun, code = time.monotonic(), start(*words).wait()
    name = words[words.index("--output-dir") + 1]
    tell(f"{name}: exit code {code} after {time.monotonic() - begun:.0f} s")
    if code:
        raise SystemExit(Path(f"{name}.log").read_text()[-2000:])


def kill(after: float, with_child: bool) -> None:
    """Kill the sweep, and the training that is its child too or not, by SIGKILL."""
    sweep = start(*RUN, *SWEEP, *SEEDS, "--output-dir", "killed")
    with suppress(subprocess.TimeoutExpired):
        sweep.wait(after)
    if sweep.poll() is not None:
        tell(f"it was through before {after:.1f} s")
        return
    children = Path(f"/proc/{sweep.pid}/task/{sweep.pid}/children").read_text().split()
    sweep.send_signal(signal.SIGKILL)
    for child in children if with_child else ():
        with suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)
    sweep.wait()
    ended = len(list(Path("killed").glob("*/*/model.safetensors")))
    tell(f"killed after {after:.1f} s{' with its child' if with_child else ''}: {ended} of 12 runs had ended")


def table(name: str) -> list[str]:
    """The lines of the table that a sweep printed last."""
    lines = Path(f"{name}.log").read_text().splitlines()
    head = max(i for i, line in enumerate(lines) if "eval_accuracy" in line and line.endswith("status"))
    return lines[head : head + 7]


def alike() -> None:
    if table("killed") != table("whole"):
        raise SystemExit("\n".join(["the tables differ:", *table("whole"), *table("killed")]))
    one, other = (json.loads(Path(name, "sweep.json").read_text()) for name in ("whole", "killed"))
    same = {"results": one["results"] == other["results"]}
    same |= {"best.toml": Path("whole/best.toml").read_text() == Path("killed/best.toml").read_text()}
    weights = sorted(Path("whole").glob("*/*/model.safetensors"))
    same |= {str(path): path.read_bytes() == Path("killed", *path.parts[1:]).read_bytes() for path in weights}
    if wrong := [name for name, equal in same.items() if not equal]:
        raise SystemExit(f"not as in the sweep left alone: {', '.join(wrong)}")
    tell(f"the same table, best.toml and weights of {len(weights)} runs")
    tell("\n".join(table("whole")))


def halved() -> None:
    left_alone(*RUN, *SWEEP, "--halving", "3", "--output-dir", "halved")
    tell("\n".join(table("halved")))
    for run in sorted(Path("halved").glob("*/seed-42")):
        record = json.loads((run / "run.json").read_text())
        if record["status"] != "finished":
            continue
        settings = [f"trainer.{part}" for part in run.parent.name.split(",")]
        left_alone(*RUN, *settings, "report.write=false", "--output-dir", f"alone-{run.parent.name}")
        alone = Path(f"alone-{run.parent.name}")
        for name in ("model.safetensors", f"checkpoint-{record['steps']}/optimizer.safetensors"):
            if (run / name).read_bytes() != (alone / name).read_bytes():
                raise SystemExit(f"{run}/{name} is not that of the run left alone")
        tell(f"{run.parent.name}: promoted at step {record['rungs']['1/3']['step']}, byte for byte the run left alone")


def tell(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", nargs="?", choices=["whole", "kill", "end", "halved"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=100.0, help="a moment of which the sweep is killed at")
    chosen = parser.parse_args()
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="llmkit-crash-sweep-"))
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    if chosen.part in (None, "whole"):
        left_alone(*RUN, *SWEEP, *SEEDS, "--output-dir", "whole")
    for seed in (chosen.seed, chosen.seed + 1) if chosen.part is None else (chosen.seed,) * (chosen.part == "kill"):
        kill(random.Random(seed).uniform(1, chosen.seconds), with_child=seed % 2 == 0)
    if chosen.part in (None, "end"):
        left_alone(*RUN, *SWEEP, *SEEDS, "--output-dir", "killed")
        alike()
    if chosen.part in (None, "halved"):
        halved()


if __name__ == "__main__":
    main()
