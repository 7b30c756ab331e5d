"""An exponential moving average of the weights (EMA), which is evaluated and saved in place of the trained ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


class Average:
    """The average of a model's trained weights, kept beside them; while it is applied the two have changed places.

    `other` holds whichever of the two is not in the model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self.other = {name: each.detach().clone() for name, each in self.parameters.items()}
        self.is_applied = False

    def update(self, step: int, taken: torch.Tensor | float = 1.0) -> None:
        """Take in the weights after `step`, unless it was skipped (`taken` is 0, on the weights' device).

        The decay of an early step is lower (as in TensorFlow's ExponentialMovingAverage): the first weights, which are
        random or another task's, are soon forgotten.
        """
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            weight = torch.as_tensor(share * taken, dtype=parameter.dtype, device=parameter.device)
            self.other[name].lerp_(parameter.detach(), weight)

    def _exchange(self) -> None:
        for name, parameter in self.parameters.items():
            held = parameter.detach().clone()
            parameter.detach().copy_(self.other[name])
            self.other[name].copy_(held)
        self.is_applied = not self.is_applied

    def apply(self) -> None:
        """Put the average into the model, for good."""
        if not self.is_applied:
            self._exchange()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the model for a while."""
        if self.is_applied:
            yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def trained(self) -> Mapping[str, torch.Tensor]:
        """Return the weights as they are trained, while the average is applied."""
        assert self.is_applied
        return self.other

    def restore(self, trained: Mapping[str, torch.Tensor]) -> None:
        """Go on from a checkpoint: the model has its weights, the average, and `trained` are those to train on."""
        self.is_applied = True
        for name, tensor in self.other.items():
            tensor.copy_(trained[name])
        self._exchange()
