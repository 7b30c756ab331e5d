"""Refuse numbers in upstream's tables that upstream does not check: they fail later, or make a useless model."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmkit.recipe.toml import Key


@dataclass(frozen=True)
class Bound:
    """The smallest and largest value of a number; with `above` and `below` these themselves are too small or large."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def mistake(self, value: float) -> str:
        """Say what `value` must be; "" where it is within the bounds."""
        if value < self.low or (self.above and value == self.low):
            return f"must be {'above' if self.above else 'at least'} {self.low:g}, not {value:g}"
        if value > self.high or (self.below and value == self.high):
            return f"must be {'below' if self.below else 'at most'} {self.high:g}, not {value:g}"
        return ""


COUNT, SHARE, POSITIVE = Bound(1), Bound(0, 1, below=True), Bound(0, above=True)
NOT_NEGATIVE, SEED = Bound(0), Bound(0, 2**32, below=True)  # NumPy's seeds have 32 bits
BOUNDS: dict[str, dict[str, Bound]] = {
    "TrainingArguments": {
        **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), COUNT),
        **dict.fromkeys(("gradient_accumulation_steps", "eval_accumulation_steps", "torch_empty_cache_steps"), COUNT),
        **dict.fromkeys(("dataloader_prefetch_factor", "ddp_bucket_cap_mb", "ddp_timeout"), COUNT),
        **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), SHARE),
        **dict.fromkeys(("adam_epsilon", "save_steps", "eval_steps"), POSITIVE),
        **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps"), NOT_NEGATIVE),
        **dict.fromkeys(("neftune_noise_alpha", "dataloader_num_workers", "logging_steps", "eval_delay"), NOT_NEGATIVE),
        **dict.fromkeys(("seed", "data_seed"), SEED),
    },
    "LoraConfig": {"r": COUNT, "lora_alpha": POSITIVE, "lora_dropout": SHARE},
    "GenerationConfig": {},
}


def mistakes(class_name: str, key: str, value: Any, path: Key) -> Iterator[tuple[Key, str]]:
    """Yield each number at or below `path`, the field `key` of an upstream class, that it cannot be; and why."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from mistakes(class_name, f"{key}.{name}", inner, (*path, str(name)))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from mistakes(class_name, f"{key}[]", inner, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if math.isnan(value) or (math.isinf(value) and key != "max_grad_norm"):  # which then measures and clips nothing
            yield path, f"must be a finite number, not {value}"
        elif message := BOUNDS.get(class_name, {}).get(key, Bound()).mistake(value):
            yield path, message
