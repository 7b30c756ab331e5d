"""How long early stopping has waited: upstream's callbacks count the evaluations, and a checkpoint keeps the counts."""

from collections.abc import Iterable, Sequence

from transformers import EarlyStoppingCallback, TrainerCallback


def state_dict(callbacks: Iterable[TrainerCallback]) -> list[int]:
    """Return how many evaluations without gain each early-stopping callback has counted."""
    return [callback.early_stopping_patience_counter for callback in _early_stopping(callbacks)]


def load_state_dict(callbacks: Iterable[TrainerCallback], counters: Sequence[int]) -> None:
    """Go on from what `state_dict` gave; a callback that was not there then has waited for nothing."""
    for callback, counter in zip(_early_stopping(callbacks), counters, strict=False):
        callback.early_stopping_patience_counter = counter


def restart(callbacks: Iterable[TrainerCallback]) -> None:
    """Let callbacks that have lost their patience wait anew."""
    for callback in _early_stopping(callbacks):
        if callback.early_stopping_patience_counter >= callback.early_stopping_patience:
            callback.early_stopping_patience_counter = 0


def _early_stopping(callbacks: Iterable[TrainerCallback]) -> list[EarlyStoppingCallback]:
    return [callback for callback in callbacks if isinstance(callback, EarlyStoppingCallback)]
