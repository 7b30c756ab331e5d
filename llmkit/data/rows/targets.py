"""Hold the targets of many rows: what is the same once, in bytes, and decoded a chunk at a time."""

import marshal
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

CHUNK = 1000  # values that are decoded at once


class Values(Sequence[Any]):
    """Values of Python's own types, each as it was: tuples stay tuples, and floats keep their bits.

    `data` are the bytes of chunks of them, end to end, and `bounds` where each chunk begins and the last one ends.
    """

    def __init__(self, data: np.ndarray, bounds: np.ndarray, number: int) -> None:
        self._data, self._bounds, self._number = data, bounds, number
        self._decoded: tuple[int, list[Any]] = (-1, [])

    @classmethod
    def of(cls, values: Sequence[Any]) -> "Values":
        """Encode values; raise ValueError for one of another type, such as a date."""
        chunks = [marshal.dumps(list(values[begin : begin + CHUNK])) for begin in range(0, len(values), CHUNK)]
        bounds = np.cumsum([0, *map(len, chunks)])
        return cls(np.frombuffer(b"".join(chunks), np.uint8), bounds, len(values))

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"value {index} of {len(self)}")
        return self._chunk(int(place) // CHUNK)[place % CHUNK]

    def __iter__(self) -> Iterator[Any]:
        for number in range(len(self._bounds) - 1):
            yield from self._chunk(number)

    def _chunk(self, number: int) -> list[Any]:
        if self._decoded[0] != number:
            written = self._data[self._bounds[number] : self._bounds[number + 1]]
            self._decoded = number, marshal.loads(written.tobytes())
        return self._decoded[1]


class Targets(Sequence[Any]):
    """The targets of rows: row i has `values[which[i]]`."""

    def __init__(self, values: Sequence[Any], which: np.ndarray) -> None:
        self.values, self.which = values, which

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Targets":
        """Make them of what `arrays` returned."""
        count = int(arrays["target_count"][0])
        return cls(Values(arrays["target_data"], arrays["target_bounds"], count), arrays["target_of"])

    def arrays(self) -> dict[str, np.ndarray]:
        """Return them as arrays; raise ValueError where Python's own types are not enough for them."""
        kept = Values.of(self.values)
        return {
            "target_data": kept._data,
            "target_bounds": kept._bounds,
            "target_count": np.array([len(kept)]),
            "target_of": self.which,
        }

    def by_row(self, said: Mapping[int, str]) -> dict[int, str]:
        """Return what is `said` of some values, by their place in `values`, for each row that has one of them."""
        rows = np.flatnonzero(np.isin(self.which, list(said))) if said else np.empty(0, np.int64)
        return {row: said[place] for row, place in zip(rows.tolist(), self.which[rows].tolist(), strict=True)}

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.values[place] for place in self.which[index].tolist()]
        return self.values[int(self.which[index])]

    def __iter__(self) -> Iterator[Any]:
        values = list(self.values) if 4 * len(self.values) < len(self.which) else self.values
        for begin in range(0, len(self.which), CHUNK):
            yield from (values[place] for place in self.which[begin : begin + CHUNK].tolist())


def distinct(targets: Iterable[Any]) -> Targets:
    """Find the targets that are equal: texts and whole numbers. All others count as different, equal or not."""
    if isinstance(targets, Targets):
        return targets
    known: dict[type, dict[Any, int]] = {str: {}, int: {}, bool: {}}
    values: list[Any] = []
    which = array("i")
    for target in targets:
        number = len(values)
        if (seen := known.get(type(target))) is not None:
            number = seen.setdefault(target, number)
        if number == len(values):
            values.append(target)
        which.append(number)
    return Targets(values, np.frombuffer(which, np.int32) if which else np.empty(0, np.int32))
