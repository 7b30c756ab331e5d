"""Train under DDP, FSDP2, ZeRO-2, ZeRO-3 and fp16 on a CPU, and hold each beside one process.

The losses must be those of one process (1e-5; fp16 1e-2). Each run is started a second time: one of its processes is
killed, the run resumed, one of its processes gets a SIGTERM, the run is resumed again, and its weights must then be
those of the run that was left alone, to the bit. Its weights, and its checkpoints, must generate or predict.

`make distributed` does all of it in an environment of its own, which has DeepSpeed;
`python tests/distributed.py ZeRO-3 lora` a part. What is real and what is not is told in tests/on_cpu.
"""

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from conftest import CAUSAL, CLASSIFY, MASKED, corpus

ROOT = Path(__file__).parent
LLMKIT = (sys.executable, "-m", "llmkit")
PATIENCE = 300.0  # seconds after which a start hangs
STEPS, SAVED = 20, 5
REST = (
    *(f"trainer.max_steps={STEPS}", f"trainer.save_steps={SAVED}", "trainer.eval_strategy=steps"),
    *("trainer.eval_steps=10", "trainer.learning_rate=3e-3", "trainer.warmup_steps=4", "trainer.logging_steps=1"),
    *("data.global_batch_size=8", "trainer.per_device_train_batch_size=4", "report.write=false"),
    "trainer.lr_scheduler_type=constant_with_warmup",
)
STILL = ("model.config.attn_pdrop=0.0", "samples.max_new_tokens=3")
BASE = ("model.config=", "tokenizer=", "model.name=gpt2", "model.init=pretrained")
TASKS = {
    "causal-lm": ("pretrain", "causal.toml", *STILL),
    "classification": ("finetune", "classify.toml"),
    "lora": ("pretrain", "causal.toml", *BASE, "lora.r=4", "lora.lora_dropout=0", "samples.max_new_tokens=3"),
}
FSDP = {"fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "fsdp_reshard_after_forward": True}
FSDP |= {"fsdp_cpu_ram_efficient_loading": False, "fsdp_offload_params": False, "fsdp_activation_checkpointing": False}
ZERO = {"offload_optimizer_device": "none", "offload_param_device": "none", "gradient_accumulation_steps": 1}


def accelerate(kind, **more):
    settings = {"compute_environment": "LOCAL_MACHINE", "distributed_type": kind, "use_cpu": kind == "FSDP"}
    return {**settings, "num_processes": 2, "num_machines": 1, "machine_rank": 0, "mixed_precision": "no", **more}


def fsdp(state_dict, **more):
    return accelerate("FSDP", fsdp_config={**FSDP, "fsdp_state_dict_type": state_dict, **more})


def zero(stage, **more):
    return accelerate("DEEPSPEED", deepspeed_config={**ZERO, "zero_stage": stage, **more})


@dataclass(frozen=True)
class Way:
    """A way to train: what stays on the CPU, Accelerate's file, how near the losses must be, and what is recorded."""

    keep: str = ""
    file: dict | None = None
    words: tuple[str, ...] = ()
    near: float = 1e-5
    record: dict = field(default_factory=dict)
    divided: bool = False
    opens: bool = True  # whether checkpoints are models without further ado


WAYS = {
    "DDP": Way(words=("--processes", "2"), record={"strategy": "DDP", "state": "full"}),
    "FSDP2": Way("fsdp", fsdp("FULL_STATE_DICT"), record={"strategy": "FSDP2", "state": "full"}, divided=True),
    "FSDP2-sharded": Way("fsdp", fsdp("SHARDED_STATE_DICT"), record={"strategy": "FSDP2"}, divided=True),
    "FSDP2-offload": Way(
        "fsdp,offload",
        fsdp("FULL_STATE_DICT", fsdp_offload_params=True),
        record={"strategy": "FSDP2", "state": "full"},
        divided=True,
    ),
    "ZeRO-2": Way("deepspeed", zero(2), record={"strategy": "ZeRO-2"}),
    "ZeRO-3": Way(
        "deepspeed",
        zero(3, zero3_init_flag=True, zero3_save_16bit_model=True),
        record={"strategy": "ZeRO-3"},
        divided=True,
    ),
    "ZeRO-3-sharded": Way(
        "deepspeed",
        zero(3, zero3_init_flag=True, zero3_save_16bit_model=False),
        record={"strategy": "ZeRO-3"},
        divided=True,
        opens=False,
    ),
    "fp16": Way(
        "fp16",
        words=("--processes", "2", "trainer.fp16=true"),
        near=1e-2,
        record={"strategy": "DDP", "precision": "fp16"},
    ),
}


class Failed(Exception):
    """Something is not as it must be."""


def must(so, what):
    if not so:
        raise Failed(what)


def environment(way, slow=0.0):
    kept = [*filter(None, [way.keep]), *(["slow"] if slow else [])]
    path = os.pathsep.join(filter(None, [str(ROOT / "on_cpu"), os.environ.get("PYTHONPATH")]))
    own = {"PYTHONPATH": path, "KEEP_ON_CPU": ",".join(kept), "SECONDS_A_STEP": str(slow), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def start(way, task, run, *words, slow=0.0):
    if way.file is not None:
        Path("accelerate.json").write_text(json.dumps(way.file))
        words = ("--accelerate-config", "accelerate.json", *words)
    words = (*LLMKIT, *TASKS[task], *REST, *way.words, "--output-dir", run, *words)
    return subprocess.Popen(
        words, env=environment(way, slow), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def end(process, code, what):
    _, said = process.communicate(timeout=PATIENCE)
    must(process.returncode == code, f"{what} ended with {process.returncode} instead of {code}:\n{said[-3000:]}")
    return said


def ranks(run):
    """The process ids of a run by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            lines = (folder / "environ").read_bytes().split(b"\0")
            variables = dict(line.split(b"=", 1) for line in lines if b"=" in line)
        except OSError:
            continue
        directory = Path(os.fsdecode(variables.get(b"LLMKIT_DIRECTORY", b"")))
        if directory.name == run and (folder / "cwd").resolve() == Path.cwd() and b"RANK" in variables:
            found.setdefault(int(variables[b"RANK"]), []).append(int(folder.name))
    return {rank: min(pids) for rank, pids in found.items()}  # the others are its children


def hit(way, task, run, number, step, code, *words):
    """Start or resume a slow run, and send a signal to its second process behind a step that is saved."""
    process = start(way, task, run, *words, slow=0.3)
    until = time.monotonic() + PATIENCE
    while not Path(run, f"checkpoint-{step}").exists():
        if process.poll() is not None:
            raise Failed(f"it ended before step {step}:\n{process.communicate()[1][-3000:]}")
        must(time.monotonic() < until, f"it did not come to step {step}")
        time.sleep(0.05)
    os.kill(ranks(run)[1], number)
    return end(process, code, f"{number.name} to a process")


def losses(run):
    entries = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [float(entry["loss"]) for entry in entries if "loss" in entry]


def weights(run):
    from safetensors.torch import load_file

    return load_file(next(Path(run).glob("*model.safetensors")))


def use(model, task):
    """What a model makes of a prompt or a row."""
    words = ("predict", model, "the fox fed 5") if task == "classification" else ("generate", "the", "--model", model)
    options = () if task == "classification" else ("do_sample=false", "max_new_tokens=5")
    done = subprocess.run([*LLMKIT, *words, *options], capture_output=True, text=True, timeout=PATIENCE)
    must(done.returncode == 0 and done.stdout.strip(), f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def examine(name, task):
    """One strategy and one task; return the largest relative difference of a loss, and what was counted."""
    import torch

    way, run, again = WAYS[name], f"{name}-{task}", f"{name}-{task}-again"
    if not Path(f"one-{task}").exists():
        end(start(Way(), task, f"one-{task}"), 0, "one process")
    end(start(way, task, run), 0, "the run")
    one, several = losses(f"one-{task}"), losses(run)
    record = json.loads(Path(run, "run.json").read_text())
    must(all(map(math.isfinite, several)), f"{several.count(math.nan)} losses are NaN")
    difference = max(abs(a - b) / abs(a) for a, b in zip(one, several, strict=True))
    must(difference < way.near, f"a loss differs by {difference:.1e} from one process's")
    for key, value in {"processes": 2, "status": "finished", **way.record}.items():
        must(record[key] == value, f"run.json says {key} = {record[key]}, not {value}")
    must((record["sharded_tensors"] > 0) == way.divided, f"{record['sharded_tensors']} tensors are divided")
    manifest = json.loads(Path(run, f"checkpoint-{STEPS}", "manifest.json").read_text())
    must(manifest["strategy"] == record["strategy"], "the manifest has another strategy")
    use(run, task)
    if way.opens or task == "lora":
        use(f"{run}/checkpoint-{STEPS}", task)
    said = hit(way, task, again, signal.SIGKILL, SAVED, 1)
    must(
        "was killed by SIGKILL" in said or "error: " in said, f"nobody says that a process was killed:\n{said[-2000:]}"
    )
    hit(way, task, again, signal.SIGTERM, 2 * SAVED, 75, "--resume")
    end(start(way, task, again, "--resume"), 0, "the run that was resumed twice")
    must(losses(again) == several, "the losses of the resumed run are others")
    alone, resumed = weights(run), weights(again)
    must(alone.keys() == resumed.keys(), "the resumed run has other tensors")
    must(all(torch.equal(alone[key], resumed[key]) for key in alone), "the weights of the resumed run are others")
    return difference, record["sharded_tensors"]


def prepare(folder):
    """The data, the recipes, and the models that two of the tasks begin with."""
    (folder / "corpus.txt").write_text(corpus(400))
    rows = (f"{line},{'fox' if 'fox' in line.split()[1] else 'other'}\n" for line in corpus(400).splitlines())
    (folder / "rows.csv").write_text("text,label\n" + "".join(rows))
    (folder / "causal.toml").write_text(CAUSAL)
    bert = MASKED.replace("hidden_dropout_prob = 0.0", "hidden_dropout_prob = 0.0\nattention_probs_dropout_prob = 0.0")
    (folder / "masked.toml").write_text(bert)
    (folder / "classify.toml").write_text(CLASSIFY)
    for recipe, output, more in (("masked.toml", "bert", ()), ("causal.toml", "gpt2", STILL)):
        words = (*LLMKIT, "pretrain", recipe, "--output-dir", output, "report.write=false", *more)
        subprocess.run(words, cwd=folder, check=True, capture_output=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="ways and tasks")
    parser.add_argument("--folder", help="a folder to work in, which stays")
    chosen = parser.parse_args()
    ways = [name for name in WAYS if name in chosen.only] or [*WAYS]
    tasks = [name for name in TASKS if name in chosen.only] or [*TASKS]
    folder = Path(chosen.folder or tempfile.mkdtemp(prefix="llmkit-distributed-"))
    folder.mkdir(exist_ok=True)
    failed = []
    if not (folder / "gpt2").exists():
        prepare(folder)
    os.chdir(folder)
    for name in ways:
        for task in tasks:
            begun = time.monotonic()
            for left in Path().glob(f"{name}-{task}*"):
                if left.name in (f"{name}-{task}", f"{name}-{task}-again"):
                    shutil.rmtree(left)
            try:
                difference, divided = examine(name, task)
                result = f"losses within {difference:.1e}, {divided} tensors divided: ok"
            except (Failed, subprocess.TimeoutExpired) as problem:
                failed.append((name, task))
                result = f"FAILED: {problem}"
            print(f"{name:<15} {task:<15} {result} ({time.monotonic() - begun:.0f} s)", flush=True)  # noqa: T201
    if not chosen.folder:
        os.chdir("/")
        shutil.rmtree(folder)
    print(f"{len(ways) * len(tasks) - len(failed)} passed, {len(failed)} failed", flush=True)  # noqa: T201
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
