"""Leave the caller's process as it was: what llmkit changes as a command, it gives back here."""

import gc
import os
import random
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from llmkit import process


@contextmanager
def guest(argv: Sequence[str] | None = None, offline: bool = False) -> Iterator[None]:
    """Run llmkit in a process that is not its own, and give back what it changes, also when it fails.

    `argv` is the command line that says the same: it stands in the run's record, and child processes are given it.
    """
    import datasets
    import numpy as np
    import torch
    import transformers
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from llmkit import hub

    states = (AcceleratorState, PartialState, GradientState)
    shared = [dict(state._shared_state) for state in states]
    environment, argv_before = dict(os.environ), sys.argv
    collecting, frozen = gc.isenabled(), gc.get_freeze_count()
    threads, rng = torch.get_num_threads(), (random.getstate(), np.random.get_state(), torch.get_rng_state())
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    child_handler = signal.getsignal(signal.SIGCHLD)
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    dataset_bars = datasets.are_progress_bars_disabled()
    was_guest, process.is_guest = process.is_guest, True
    try:
        for state in states:
            state._shared_state.clear()
        if argv is not None:
            sys.argv = ["llmkit", *argv]
        with warnings.catch_warnings(), hub.unchanged():
            if offline:
                hub.go_offline("is not contacted (offline=True)")
            yield
    finally:
        process.is_guest = was_guest
        sys.argv = argv_before
        for state, before in zip(states, shared, strict=True):
            state._shared_state.clear()
            state._shared_state.update(before)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        (gc.enable if collecting else gc.disable)()
        if not frozen:
            gc.unfreeze()
        torch.set_num_threads(threads)
        random.setstate(rng[0])
        np.random.set_state(rng[1])
        torch.set_rng_state(rng[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        if child_handler is not None:  # else it is not Python's
            process.handle({signal.SIGCHLD: child_handler})
        transformers.logging.set_verbosity(verbosity)
        (transformers.logging.enable_progress_bar if bars else transformers.logging.disable_progress_bar)()
        (datasets.disable_progress_bars if dataset_bars else datasets.enable_progress_bars)()
