"""What is timed: each work is one task, done by llmkit (the command, as a user has it) and by what stands beside it.

A side is a function of a folder of its own and a seed; it runs its command there and says what came of it.
"""

import json
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import measure
from measure import Failed, Ran

HERE = Path(__file__).parent
LLMKIT = str(Path(sys.executable).with_name("llmkit"))
STORIES = HERE.parent / "recipes" / "tiny" / "stories.txt"
SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"
# What a user of Trainer sets to have it as quiet as llmkit, and to log as llmkit does.
TRAINER = {"logging_first_step": True, "save_strategy": "no", "disable_tqdm": True, "report_to": "none"}
GGUF = """
import sys
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
from llmkit.export import gguf_file
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="float32")
gguf_file.write_file(model, AutoTokenizer.from_pretrained(sys.argv[1]), Path("q8_0.gguf"), "q8_0")
"""
COUNT = """
import json, sys
from tokenizers import Tokenizer
texts = json.load(open(sys.argv[2]))
print(sum(len(each) for each in Tokenizer.from_pretrained(sys.argv[1]).encode_batch(texts, add_special_tokens=False)))
"""


@dataclass(frozen=True)
class Outcome:
    """What one run of one side came to.

    `figure` is in the unit of the work, `processor` the same by processor time of all threads in place of the clock
    (None where it is not known); `memory` in bytes; `first` the seconds from the start of the command to the end
    of its first step, or to its first token. Sides that did the same work agree in `counts`, and in `metrics` within
    the spread of seeds. `length` is how many tokens an example has on average, where that is known.
    """

    figure: float
    processor: float | None
    memory: int
    first: float | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    texts: Sequence[str] = ()
    length: float | None = None


Side = Callable[[Path, int], Outcome]


@dataclass(frozen=True)
class Work:
    """One comparison; the first side is llmkit's.

    `wanted` is, for each side, what the ratio of llmkit's figure to its must come to, at least (where less is better,
    at most), and that of the peak memory, at most. `spread` is how far the means of a metric may lie apart; `alike` are
    two sides whose texts are to be the same in so large a share. `by_turns`: the sides run by turns of a second; where
    commands have children, who would go on, one after another. `operations` are the floating-point operations that
    a figure stands for, by figure and length, in a second.
    """

    unit: str
    sides: Mapping[str, Side]
    wanted: Mapping[str, tuple[float, float | None]] = field(default_factory=dict)
    less: bool = False  # less is better
    spread: Mapping[str, float] = field(default_factory=dict)
    alike: tuple[str, str, float] | None = None
    operations: Callable[[float, float | None], float] | None = None
    prepare: Callable[[Path], None] | None = None
    by_turns: bool = True
    times: int = 1  # rounds for each that was asked for: more where a command takes a moment


def operations(
    layers: int, width: int, length: float, head: int = 0, causal: bool = False, training: bool = True
) -> float:
    """Floating-point operations that a token of a transformer needs, whose inner layers are four times as wide.

    Two for each weight that it is multiplied with, and for attention 4 x layers x width x positions that it sees; three
    times that in training (Kaplan et al. 2020, arXiv:2001.08361, section 2.1; Chowdhery et al. 2022, arXiv:2204.02311,
    appendix B). `head` are the weights of the head, per token that it is needed for. Padding needs none.
    """
    weights = 12 * layers * width**2 + head
    seen = length / 2 if causal else length
    return (3 if training else 1) * (2 * weights + 4 * layers * width * seen)


# ---- trainings -----------------------------------------------------------------------------------------------------


def ours(
    words: Sequence[str], trainer: Mapping[str, Any], judged: Sequence[str] = (), environment: Mapping[str, str] = {}
) -> Side:
    """`llmkit WORDS` with `trainer` over the recipe's; `judged` is what `llmkit evaluate` is told of the data."""

    def side(folder: Path, seed: int) -> Outcome:
        settings = {**trainer, "seed": seed, "save_strategy": "no"}
        said = [f"trainer.{key}={value}" for key, value in settings.items()]
        ran = measure.run([LLMKIT, *words, *said, "--output-dir", "run"], folder, **environment)
        run = folder / "run"
        record = json.loads((run / "run.json").read_text())
        recipe = tomllib.loads((run / "recipe.toml").read_text())["trainer"]
        batch = recipe["per_device_train_batch_size"] * recipe.get("gradient_accumulation_steps", 1)
        length = None
        if "block_size" in record:
            units = record["steps"] * batch * record["processes"] * record["block_size"]
        else:
            data = record["data"]["train"]
            units = round(data["examples"] * recipe["num_train_epochs"])
            length = data["tokens"] / data["examples"]
        counts = {"parameters": record["parameters"], "steps": record["steps"], "units": units}
        metrics = judge(run, judged) if judged else {"eval_loss": record["metrics"]["eval_loss"]}
        return trained(ran, run, counts, metrics, length)

    return side


def plain(script: str, words: Sequence[Any], trainer: Mapping[str, Any], judged: Sequence[str]) -> Side:
    """A script of `plain/` with the same `trainer`, judged in the same way."""

    def side(folder: Path, seed: int) -> Outcome:
        given = {**trainer, "seed": seed, **TRAINER, "output_dir": "run"}
        ran = measure.run([sys.executable, HERE / "plain" / script, *words, json.dumps(given)], folder)
        counts = json.loads((folder / "run/result.json").read_text())
        return trained(ran, folder / "run", counts, judge(folder / "run", judged))

    return side


def trained(
    ran: Ran, run: Path, counts: Mapping[str, int], metrics: Mapping[str, float], length: float | None = None
) -> Outcome:
    """Units a second from the second log to the last: the first step warms up, and only training is between logs."""
    logs = [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
    if len(logs) < 3:
        raise Failed(f"{len(logs)} logs of a training are too few to time it by")
    warm, last = logs[1], logs[-1]
    units = (last["step"] - warm["step"]) * counts["units"] / counts["steps"]
    used = ran.processor_between(warm["time"], last["time"])
    return Outcome(
        figure=units / ran.between(warm["time"], last["time"]),
        processor=units / used if used else None,
        memory=ran.memory,
        first=ran.between(ran.began, logs[0]["time"]),
        counts=counts,
        metrics=metrics,
        length=length,
    )


def judge(run: Path, words: Sequence[str]) -> dict[str, float]:
    """One ruler for all sides: what `llmkit evaluate` says of the model that came of it."""
    return json.loads(measure.run([LLMKIT, "evaluate", run, *words], run.parent).said)


def causal_lm(quick: bool, more: Sequence[str] = ()) -> Work:
    trainer = {**_short(quick), "per_device_train_batch_size": 16, "learning_rate": 1e-3}
    recipe = str(HERE / "causal-lm.toml")
    needed = operations(4, 128, 128, head=50_257 * 128, causal=True)
    return Work(
        "tokens/s",
        {
            "llmkit": ours(["pretrain", recipe, *more], trainer, [recipe]),
            "plain Trainer": plain("causal_lm.py", (), trainer, [recipe]),
        },
        wanted={"plain Trainer": (1.25, 0.6)},
        spread={"eval_loss": 0.1 if quick else 0.03},
        operations=lambda rate, length: rate * needed,
    )


def masked_lm(quick: bool, more: Sequence[str] = ()) -> Work:
    trainer = {**_short(quick), "per_device_train_batch_size": 16, "learning_rate": 1e-3}
    recipe = str(HERE / "masked-lm.toml")
    needed = operations(4, 256, 128, head=round(0.15 * (30_522 * 256 + 256**2)))
    return Work(
        "tokens/s",
        {
            "llmkit": ours(["pretrain", recipe, *more], trainer, [recipe]),
            "plain Trainer": plain("masked_lm.py", (), trainer, [recipe]),
        },
        wanted={"plain Trainer": (1.8, None)},
        spread={"eval_loss": 0.15 if quick else 0.06},
        operations=lambda rate, length: rate * needed,
    )


def _short(quick: bool) -> dict[str, int]:
    """How long a training of blocks is, and how often it logs."""
    return {"max_steps": 6, "logging_steps": 2} if quick else {"max_steps": 40, "logging_steps": 10}


def sst2(quick: bool, more: Sequence[str] = ()) -> Work:
    rows = 160 if quick else 1600
    trainer = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "learning_rate": 1e-4,
        "warmup_steps": 0.06,
        "logging_steps": 2 if quick else 5,
    }
    judged = ["--task", "sst2"]
    return Work(
        "sentences/s",
        {
            "llmkit": ours(["finetune", "--task", "sst2", f"data.split=train[:{rows}]", *more], trainer, judged),
            "plain Trainer, padded to 128": plain("classify.py", ("max_length", rows), trainer, judged),
            "plain Trainer, padded to the batch": plain("classify.py", ("batch", rows), trainer, judged),
        },
        wanted={"plain Trainer, padded to 128": (8, None), "plain Trainer, padded to the batch": (2.5, None)},
        spread={"eval_accuracy": 0.15 if quick else 0.03},
        operations=_of_minilm,
    )


def squad(quick: bool, more: Sequence[str] = ()) -> Work:
    rows = 40 if quick else 400
    trainer = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 32,
        "learning_rate": 1e-4,
        "warmup_steps": 0.06,
        "logging_steps": 2 if quick else 5,
    }
    held_out = "data.validation_split=validation[:100]"
    judged = ["--task", "squad_v2", held_out]
    return Work(
        "windows/s",
        {
            "llmkit": ours(
                ["finetune", "--task", "squad_v2", f"data.split=train[:{rows}]", held_out, *more], trainer, judged
            ),
            "plain Trainer, padded to 384": plain("answer.py", ("max_length", rows), trainer, judged),
            "plain Trainer, padded to the batch": plain("answer.py", ("batch", rows), trainer, judged),
        },
        wanted={"plain Trainer, padded to 384": (2, None), "plain Trainer, padded to the batch": (1.3, None)},
        spread={"eval_loss": 0.5},
        operations=_of_minilm,
    )


def _of_minilm(rate: float, length: float | None, training: bool = True) -> float:
    return 0.0 if length is None else rate * length * operations(6, 384, length, training=training)


def small_step(quick: bool, more: Sequence[str] = ()) -> Work:
    steps = 300 if quick else 1000

    def milliseconds(side: Side, folder: Path, seed: int) -> Outcome:
        found = side(folder, seed)
        units = 1000 * found.counts["units"] / found.counts["steps"]
        used = found.processor and units / found.processor
        return replace(found, figure=units / found.figure, processor=used)

    def loop(folder: Path, seed: int) -> Outcome:
        run = folder / "run"
        run.mkdir()
        ran = measure.run([sys.executable, HERE / "plain/loop.py", run, str(steps), str(seed)], folder)
        counts = json.loads((run / "result.json").read_text())
        return trained(ran, run, counts, {"eval_loss": counts.pop("eval_loss")})

    command = ours(["pretrain", "shakespeare-char", *more], {"max_steps": steps, "logging_steps": 100})
    needed = 12 * 64 * operations(4, 128, 64, head=67 * 128, causal=True)
    return Work(
        "ms a step",
        {"llmkit": partial(milliseconds, command), "bare PyTorch loop": partial(milliseconds, loop)},
        wanted={"bare PyTorch loop": (1.05, None)},
        less=True,
        spread={"eval_loss": 0.03},
        operations=lambda milliseconds, length: 1000 / milliseconds * needed,
    )


def two_processes(quick: bool) -> Work:
    recipe, one = str(HERE / "causal-lm.toml"), {"OMP_NUM_THREADS": "1"}
    trainer = {**_short(quick), "learning_rate": 1e-3}

    def side(processes: int) -> Side:
        words = ["pretrain", recipe, "--processes", str(processes)]
        command = ours(words, {**trainer, "per_device_train_batch_size": 16 // processes}, [recipe], one)
        return lambda folder, seed: replace(command(folder, seed), processor=None)  # the parent's says nothing

    sides = {"llmkit, 2 processes": side(2), "llmkit, 1 process": side(1)}
    return Work("tokens/s", sides, spread={"eval_loss": 0.1}, by_turns=False)


def chat(quick: bool) -> Work:
    rows = 32 if quick else 160
    trainer = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-4,
        "warmup_steps": 0.03,
        "lr_scheduler_type": "cosine",
        "logging_steps": 1 if quick else 5,
    }
    judged = ["--task", "chat", "data.split=train[900:950]", "data.validation_fraction="]
    words = ["finetune", "chat", f"data.split=train[:{rows}]", "data.validation_fraction="]
    return Work(
        "conversations/s",
        {
            "llmkit": ours(words, trainer, judged),
            "trl": plain("chat_trl.py", (rows,), trainer, judged),  # which recomputes activations unless it is told
            "trl, no checkpointing": plain(
                "chat_trl.py", (rows,), {**trainer, "gradient_checkpointing": False}, judged
            ),
        },
        spread={"eval_loss": 0.05},
    )


# ---- use -----------------------------------------------------------------------------------------------------------


def twice(
    long: Sequence[Any], short: Sequence[Any], folder: Path, units: int
) -> tuple[Ran, tuple[float, float, int, float]]:
    """The long command's end, and of both: units a second, and of processor time; memory; the short one's seconds.

    `units` are what the long one does beyond the short one: start and loading do not count, and nothing inside either
    side has to hold a clock.
    """
    little = measure.run(short, folder)
    much = measure.run(long, folder)
    if much.seconds <= little.seconds:
        raise Failed(f"`{' '.join(map(str, long))}` took no longer than a part of it: too little work to time")
    rates = units / (much.seconds - little.seconds), units / (much.processor - little.processor)
    return much, (*rates, much.memory, little.seconds)


def evaluation(quick: bool, more: Sequence[str] = ()) -> Work:
    rows, few = (400 if quick else 872), 8

    def llmkit(folder: Path, seed: int) -> Outcome:
        long, short = ([LLMKIT, "evaluate", MODEL, f"data.max_eval_samples={n}", *more] for n in (rows, few))
        much, figures = twice(long, short, folder, rows - few)
        record = json.loads((folder / MODEL / "run.json").read_text())
        data = record["data"]["validation"]
        counts = {"parameters": record["parameters"]}
        length = data["tokens"] / data["examples"]
        return Outcome(*figures, counts, json.loads(much.said), length=length)

    def trainer(padding: str, folder: Path, seed: int) -> Outcome:
        words = [sys.executable, HERE / "plain/evaluate.py", padding]
        much, figures = twice([*words, rows, MODEL], [*words, few, MODEL], folder, rows - few)
        found = json.loads(much.said.splitlines()[-1])  # Trainer prints its metrics too
        return Outcome(*figures, {"parameters": found.pop("parameters")}, found)

    return Work(
        "sentences/s",
        {
            "llmkit": llmkit,
            "plain Trainer, 8 padded to 128": partial(trainer, "max_length"),
            "plain Trainer, 8 padded to the batch": partial(trainer, "batch"),
        },
        wanted={"plain Trainer, 8 padded to 128": (4, None)},
        spread={"eval_loss": 1e-5, "eval_accuracy": 1e-6},
        operations=partial(_of_minilm, training=False),
        prepare=partial(learn, 160 if quick else 1600),
        times=1 if quick else 2,  # what is timed is shorter than the start
    )


MODEL = "../model"  # what `learn` leaves, seen from the folder of a side
ONNXRUNTIME = "onnxruntime, int8"
SENTENCES = """
import json, sys
from datasets import load_dataset
data = load_dataset("nyu-mll/glue", "sst2", split="validation")
for file, count in zip(("all", "few"), sys.argv[1:]):
    rows = data.select([number % len(data) for number in range(int(count))])
    labels = rows.features["label"].int2str(rows["label"])
    with open(f"{file}.jsonl", "w") as out:
        for sentence, label in zip(rows["sentence"], labels):
            print(json.dumps({"sentence": sentence, "label": label}), file=out)
"""


def learn(rows: int, folder: Path) -> None:
    """Train the classifier that is used: MiniLM, on some sentences of SST-2."""
    words = ["--task", "sst2", f"data.split=train[:{rows}]", "trainer.save_strategy=no", "--output-dir", "model"]
    measure.run([LLMKIT, "finetune", *words], folder)


def predict_one(quick: bool) -> Work:
    """Labels for sentences that come one by one, as a service gets them."""

    def llmkit(precision: str) -> list[str | Path]:
        return [sys.executable, HERE / "plain/predict_llmkit.py", MODEL, precision]

    return predictions(quick, llmkit, 1, 200 if quick else 872)


def predict_many(quick: bool) -> Work:
    """Labels for a file of sentences."""

    def llmkit(precision: str) -> list[str | Path]:
        words = ["--quantize", "int8"] if precision == "int8" else ["--precision", precision]
        return [LLMKIT, "predict", MODEL, *words, "--output", "labels.jsonl", "--overwrite", "--input"]

    return predictions(quick, llmkit, 16, 1_600 if quick else 4 * 872)


def predictions(quick: bool, llmkit: Callable[[str], list[str | Path]], size: int, rows: int) -> Work:
    """A classifier labels sentences of SST-2; what stands beside llmkit takes `size` of them at a time.

    The last word of each side's command is a file of rows. All are judged by the sentences' own labels.
    """

    def prepare(folder: Path) -> None:
        learn(160 if quick else 1600, folder)
        measure.run([sys.executable, "-c", SENTENCES, str(rows), str(size)], folder)
        if ONNXRUNTIME in sides:
            (folder / "onnx").mkdir()
            measure.run([sys.executable, HERE / "plain/predict_onnx.py", "model", "onnx"], folder)
            measure.run([LLMKIT, "predict", "model", "--quantize", "int8", "--input", "few.jsonl"], folder)  # made once

    def side(words: Sequence[str | Path], folder: Path, seed: int) -> Outcome:
        long, short = ([*words, f"../{file}.jsonl"] for file in ("all", "few"))
        much, figures = twice(long, short, folder, rows - size)
        output = folder / "labels.jsonl"
        if output.is_file():
            labels = [json.loads(line)["predicted_label"] for line in output.read_text().splitlines()]
        else:
            labels = json.loads(much.said.splitlines()[-1])
        truth = [json.loads(line)["label"] for line in (folder / "../all.jsonl").read_text().splitlines()]
        right = sum(one == other for one, other in zip(labels, truth, strict=True))
        return Outcome(*figures, {"sentences": len(labels)}, {"accuracy": right / len(truth)})

    transformers = f"transformers, {'one by one' if size == 1 else f'{size} at a time'}"
    commands = {f"llmkit, {precision}": llmkit(precision) for precision in ("int8", "bf16", "fp32")}
    commands[transformers] = [sys.executable, HERE / "plain/predict.py", MODEL, str(size)]
    commands[ONNXRUNTIME] = [sys.executable, HERE / "plain/predict_onnx.py", MODEL, "../onnx", str(size)]
    if not (find_spec("onnxruntime") and find_spec("onnxscript")):
        del commands[ONNXRUNTIME], commands["llmkit, int8"]
    sides = {name: partial(side, words) for name, words in commands.items()}
    wanted = {transformers: (4 if size == 1 else 2.5, None)}
    spread = {"accuracy": 0.03 if quick else 0.003}
    return Work("sentences/s", sides, wanted, spread=spread, prepare=prepare, times=1 if quick else 2)


PROMPT = "Once upon a time, in a village by the sea,"


def from_prompt(more: Sequence[str], count: int, folder: Path, seed: int) -> Outcome:
    """`llmkit generate PROMPT` with the options `more`."""
    long, short = ([LLMKIT, "generate", PROMPT, "--model", SMOL, *more, *greedy(n)] for n in (count, 1))
    much, figures = twice(long, short, folder, count - 1)
    return written(figures, [much.said.removeprefix(PROMPT).removesuffix("\n")], count, folder)


def generate_one(quick: bool) -> Work:
    count = 64 if quick else 128

    def prepare(folder: Path) -> None:
        if "CTranslate2, int8" in sides:
            code = "import sys; from ctranslate2.converters.transformers import main; main()"
            words = ["--model", SMOL, "--output_dir", "ctranslate2", "--quantization", "int8"]
            measure.run([sys.executable, "-c", code, *words], folder)
        if "llama.cpp, Q8_0" in sides:
            measure.run([sys.executable, "-c", GGUF, SMOL], folder)
        measure.run([LLMKIT, "generate", PROMPT, "--model", SMOL, "--quantize", "int8", *greedy(1)], folder)

    sides = {
        "llmkit, int8": partial(from_prompt, ["--quantize", "int8"], count),
        "llmkit": partial(from_prompt, [], count),
        "transformers": partial(one_by_one, [PROMPT], count, [HERE / "plain/generate.py", SMOL]),
    }
    if find_spec("ctranslate2"):
        words = [HERE / "plain/generate_ctranslate2.py", SMOL, "../ctranslate2"]
        sides["CTranslate2, int8"] = partial(one_by_one, [PROMPT], count, words)
    if find_spec("xllamacpp") and find_spec("gguf"):
        sides["llama.cpp, Q8_0"] = partial(
            one_by_one, [PROMPT], count, [HERE / "plain/generate_llamacpp.py", "../q8_0.gguf"]
        )
    return Work(
        "tokens/s",
        sides,
        wanted={"transformers": (4, None), "CTranslate2, int8": (0.9, None)},
        alike=("llmkit", "transformers", 1.0),
        prepare=prepare,
    )


def generate_chat(quick: bool) -> Work:
    """An answer that streams, beside a text that is written without."""
    count = 64 if quick else 128
    sides = {"llmkit --chat": partial(from_prompt, ["--chat"], count), "llmkit": partial(from_prompt, [], count)}
    return Work("tokens/s", sides)


def generate_many(quick: bool) -> Work:
    prompts = mixed_prompts(4 if quick else 64)
    count = 8 if quick else 64

    def llmkit(more: Sequence[str], folder: Path, seed: int) -> Outcome:
        write_prompts(folder / "one.jsonl", prompts[:1])
        write_prompts(folder / "all.jsonl", prompts)
        long, short = (
            [
                LLMKIT,
                "generate",
                "--input",
                f"{file}.jsonl",
                "--output",
                f"{file}-out.jsonl",
                "--model",
                SMOL,
                *more,
                *greedy(n),
            ]
            for file, n in (("all", count), ("one", 1))
        )
        _, figures = twice(long, short, folder, count * len(prompts) - 1)
        rows = map(json.loads, (folder / "all-out.jsonl").read_text().splitlines())
        return written(figures, [row["completion"] for row in rows], count, folder)

    return Work(
        "tokens/s",
        {
            "llmkit": partial(llmkit, []),
            "llmkit, int8": partial(llmkit, ["--quantize", "int8"]),
            "transformers, one by one": partial(one_by_one, prompts, count, [HERE / "plain/generate.py", SMOL]),
        },
        wanted={"transformers, one by one": (8, None)},
        alike=("llmkit", "transformers, one by one", 0.9),  # a batch adds up in another order than a row alone
    )


def mixed_prompts(number: int) -> list[str]:
    """Prompts of 4 to 153 words, each from another story on."""
    words = [line.split() for line in STORIES.read_text().splitlines()[: number + 3]]
    return [" ".join(list(chain(*words[i : i + 4]))[: 4 + 37 * i % 150]) for i in range(number)]


def write_prompts(file: Path, prompts: Sequence[str]) -> None:
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


def greedy(count: int) -> list[str]:
    return ["do_sample=false", f"min_new_tokens={count}", f"max_new_tokens={count}"]


def one_by_one(prompts: Sequence[str], count: int, script: Sequence[str | Path], folder: Path, seed: int) -> Outcome:
    """A `script` of `plain/` that goes on from one prompt after another, with its first words."""
    write_prompts(folder / "one.jsonl", prompts[:1])
    write_prompts(folder / "all.jsonl", prompts)
    words = [sys.executable, *script]
    long, short = [*words, count, "all.jsonl"], [*words, 1, "one.jsonl"]
    much, figures = twice(long, short, folder, count * len(prompts) - 1)
    texts = [json.loads(line)["completion"] for line in much.said.splitlines()]
    return written(figures, texts, count, folder)


def written(figures: tuple[float, float, int, float], texts: Sequence[str], count: int, folder: Path) -> Outcome:
    """Raises Failed where the texts are not as long as was asked for (to a tenth: what is decoded joins anew)."""
    (folder / "texts.json").write_text(json.dumps(texts))
    found = int(measure.run([sys.executable, "-c", COUNT, SMOL, "texts.json"], folder).said)
    if abs(found - count * len(texts)) > max(2, 0.1 * count * len(texts)):
        raise Failed(f"{len(texts)} texts of {count} tokens were asked for, and {found} tokens came")
    return Outcome(*figures, {"texts": len(texts)}, texts=texts)


# ---- start-up ------------------------------------------------------------------------------------------------------


def started(words: Sequence[str | Path], wanted: int, folder: Path, seed: int) -> Outcome:
    """Seconds of a whole command."""
    ran = measure.run(words, folder, wanted)
    return Outcome(ran.seconds, ran.processor, ran.memory)


def start(words: Sequence[str], beside: str, most: float | None, quick: bool, exit_code: int = 0) -> Work:
    """A command of llmkit beside Python that does as much as must be done for it."""
    wanted = {} if most is None else {f"`{beside}`": (most, None)}
    sides = {"llmkit": partial(started, [LLMKIT, *words], exit_code)}
    sides[f"`{beside}`"] = partial(started, [sys.executable, "-c", beside], 0)
    return Work("s", sides, wanted, less=True, times=1 if quick else 5)


def start_generate(quick: bool) -> Work:
    beside = "import torch; AutoTokenizer, AutoModelForCausalLM.from_pretrained"
    code = (
        "import torch; from transformers import AutoModelForCausalLM, AutoTokenizer; "
        f"AutoTokenizer.from_pretrained('{SMOL}'); AutoModelForCausalLM.from_pretrained('{SMOL}')"
    )
    command = [LLMKIT, "generate", PROMPT, "--model", SMOL, *greedy(1)]
    sides = {"llmkit": partial(started, command, 0), beside: partial(started, [sys.executable, "-c", code], 0)}
    return Work("s", sides, {beside: (1.3, None)}, less=True)


def start_training(quick: bool) -> Work:
    """From the command to the end of its first step: of a model so small that the step itself is nothing."""

    def first(run: Path, ran: Ran) -> Outcome:
        log = json.loads((run / "metrics.jsonl").read_text().partition("\n")[0])
        return Outcome(ran.between(ran.began, log["time"]), ran.processor_between(ran.began, log["time"]), ran.memory)

    def llmkit(folder: Path, seed: int) -> Outcome:
        settings = ["trainer.max_steps=1", "data.max_eval_samples=24", "trainer.save_strategy=no"]
        ran = measure.run([LLMKIT, "pretrain", "shakespeare-char", *settings, "--output-dir", "run"], folder)
        return first(folder / "run", ran)

    def bare(folder: Path, seed: int) -> Outcome:
        settings = {"max_steps": 1, "per_device_train_batch_size": 12, "output_dir": "run", **TRAINER}
        ran = measure.run([sys.executable, HERE / "plain/start.py", json.dumps(settings)], folder)
        return first(folder / "run", ran)

    return Work("s", {"llmkit": llmkit, "bare Trainer": bare}, {"bare Trainer": (1.2, None)}, less=True)


# ---- one optimisation switched off ---------------------------------------------------------------------------------

# Of each: the work that it speeds up, and the words that switch it off.
SWITCHES: dict[str, tuple[Callable[..., Work], list[str]]] = {
    "fused-loss": (causal_lm, ["speed.fused_loss=false"]),
    "skip-ignored": (masked_lm, ["speed.skip_ignored=false"]),
    "attention-dropout": (masked_lm, ["model.config.attention_probs_dropout_prob=0.1"]),
    "split-batches": (sst2, ["speed.split_batches=false"]),
    "grouping": (sst2, ["trainer.train_sampling_strategy=random"]),
    "windows": (squad, ["speed.split_batches=false"]),
    "threads": (causal_lm, ["speed.threads=1"]),
    "fast-dropout": (sst2, ["speed.fast_dropout=false"]),
    "reuse-memory": (masked_lm, ["speed.reuse_memory=false"]),
}


def switched(name: str, quick: bool) -> Work:
    """llmkit beside itself with one optimisation off."""
    work, off = SWITCHES[name]
    on, without = (next(iter(work(quick, more).sides.values())) for more in ((), off))
    sides = {"llmkit": on, f"llmkit, {' '.join(off)}": without}
    return replace(work(quick), sides=sides, wanted={}, alike=None)


# ---- all of them ---------------------------------------------------------------------------------------------------

WORKS: dict[str, Callable[[bool], Work]] = {
    "causal-lm": causal_lm,
    "masked-lm": masked_lm,
    "sst2": sst2,
    "squad": squad,
    "small-step": small_step,
    "evaluation": evaluation,
    "predict-one": predict_one,
    "predict-many": predict_many,
    "generate-one": generate_one,
    "generate-many": generate_many,
    "generate-chat": generate_chat,
    "start-up/help": partial(start, ["--help"], "import typer", 2),
    "start-up/recipes": partial(start, ["recipes"], "import typer", None),
    "start-up/dry-run": partial(start, ["pretrain", "gpt2-small", "--dry-run"], "import torch", None),
    "start-up/mistake": partial(
        start, ["pretrain", "gpt2-small", "trainer.learning_rat=1"], "import torch", None, exit_code=2
    ),
    "start-up/generate": start_generate,
    "start-up/training": start_training,
    "two-processes": two_processes,
    "trl": chat,
    **{f"switch/{name}": partial(switched, name) for name in SWITCHES},
}


def missing(name: str) -> str | None:
    """What a work needs that is not installed."""
    return "trl" if name == "trl" and find_spec("trl") is None else None
