"""Ask Optuna's TPE for the next trial, by what the trials so far have shown."""

import random
from collections.abc import Sequence
from typing import Any

from llmkit.sweeps.space import Axis


def ask(
    axes: Sequence[Axis], seen: Sequence[tuple[dict[str, Any], float | None]], less: bool, seed: int
) -> dict[str, Any]:
    """Return the settings of the next trial.

    Args:
        axes: The keys that are swept.
        seen: The settings and the value of each trial so far; None of one that failed.
        less: Whether a smaller value is better.
        seed: The sweep's; with the number of trials it decides what is random, so that a sweep can be gone on with.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {axis.key: _distribution(axis) for axis in axes}
    sampler = optuna.samplers.TPESampler(seed=random.Random(f"{seed} {len(seen)}").randrange(2**32))
    study = optuna.create_study(direction="minimize" if less else "maximize", sampler=sampler)
    for settings, value in seen:
        params = {
            axis.key: axis.values.index(settings[axis.key]) if axis.values else settings[axis.key] for axis in axes
        }
        state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value, state=state))
    parameters = study.ask(distributions).params
    return {axis.key: _value(axis, parameters[axis.key]) for axis in axes}


def _distribution(axis: Axis) -> Any:
    from optuna import distributions

    if axis.values:  # by their places, as they may be arrays
        return distributions.CategoricalDistribution(range(len(axis.values)))
    kind = distributions.IntDistribution if axis.whole else distributions.FloatDistribution
    return kind(axis.low, axis.high, log=axis.log)


def _value(axis: Axis, parameter: Any) -> Any:
    return axis.values[parameter] if axis.values else parameter if axis.whole else axis.rounded(parameter)
