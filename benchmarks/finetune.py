"""A fine-tune by llmkit beside plain `Trainer` code with the same settings: the same figures, seed by seed.

python benchmarks/finetune.py mrpc f1 3
python benchmarks/finetune.py sst2 accuracy 3 "data.split=train[:4000]"

The plain side is what a user writes today: `load_dataset`, a tokenizing `map`, `AutoModelForSequenceClassification`,
`Trainer` with dynamic padding, and its own batches in random order; llmkit's batches are drawn at random here too,
where its recipe would group them by length.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = {"sst2": ("sentence",), "mrpc": ("sentence1", "sentence2"), "rte": ("sentence1", "sentence2")}


def ours(task: str, metric: str, seed: int, epochs: int, split: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "llmkit", "finetune", "--task", task, f"trainer.seed={seed}"]
        words += [f"trainer.num_train_epochs={epochs}", f"data.split={split}", "--output-dir", f"{folder}/run"]
        words += ["trainer.train_sampling_strategy=random", "trainer.save_strategy=no"]
        subprocess.run(words, check=True, capture_output=True)
        return json.loads(Path(folder, "run", "run.json").read_text())["metrics"][f"eval_{metric}"]


def plain(task: str, metric: str, seed: int, epochs: int, split: str) -> float:
    import datasets
    import numpy as np
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    from llmkit import metrics

    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    parts = [datasets.load_dataset("nyu-mll/glue", task, split=each) for each in (split, "validation")]
    parts = [
        part.map(lambda rows: tokenizer(*(rows[c] for c in TEXTS[task]), truncation=True, max_length=128), batched=True)
        for part in parts
    ]
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=2)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            seed=seed,
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            learning_rate=1e-4,
            warmup_steps=0.06,
            save_strategy="no",
            logging_steps=1000,
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model, args=args, train_dataset=parts[0], eval_dataset=parts[1], processing_class=tokenizer
        )
        trainer.train()
        found = trainer.predict(parts[1])
    chosen = found.predictions.argmax(axis=-1)
    return float(getattr(metrics, metric)(np.asarray(chosen), np.asarray(found.label_ids)))


def main(task: str, metric: str, seeds: str = "3", split: str = "data.split=train") -> None:
    epochs = 3 if task in ("mrpc", "rte") else 1
    split = split.removeprefix("data.split=")
    found: dict[str, list[float]] = {"llmkit": [], "Trainer": []}
    for seed in range(42, 42 + int(seeds)):
        for name, side in (("llmkit", ours), ("Trainer", plain)):
            started = time.monotonic()
            figure = side(task, metric, seed, epochs, split)
            found[name].append(figure)
            print(f"{task} seed {seed} {name:8} {metric} {figure:.4f} ({time.monotonic() - started:.0f} s)", flush=True)
    for name, figures in found.items():
        spread = stdev(figures) if len(figures) > 1 else 0.0
        print(f"{name:8} {mean(figures):.4f} +- {spread:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
