"""Hold the numbers of any number of rows: few of them in memory, many in a file that has no name."""

import mmap
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np

from llmkit.disk import cache_dir
from llmkit.errors import UserError

IN_MEMORY = 2**22  # bytes of a column that are held in memory; beyond, all of it goes to a file, so many at a time


class Column:
    """A sequence of integers that grows at its end until it is first read.

    `kind` is the type code of `array`: "i" for int32, "q" for int64, "Q" for uint64.
    """

    __hash__ = None  # type: ignore[assignment]  # it is equal to whatever holds the same numbers

    def __init__(self, kind: str = "q") -> None:
        self._kind = kind
        self._added: array[int] = array(kind)  # those that are not in the file
        self._file: IO[bytes] | None = None
        self._size = 0
        self._values: np.ndarray | None = None

    @classmethod
    def of(cls, values: np.ndarray) -> "Column":
        """Make a column of numbers that are there already; it does not grow."""
        column = cls()
        column._values, column._size = values, len(values)
        return column

    def append(self, number: int) -> None:
        self.extend((number,))

    def extend(self, numbers: Iterable[int]) -> None:
        """Add numbers; an array of another type is converted."""
        assert self._values is None, "a column that has been read does not grow"
        before = len(self._added)
        if isinstance(numbers, np.ndarray):
            self._added.frombytes(numbers.astype(self._kind, copy=False).tobytes())
        else:
            self._added.extend(numbers)
        self._size += len(self._added) - before
        if len(self._added) * self._added.itemsize > IN_MEMORY:
            self._write()

    def __iadd__(self, numbers: Iterable[int]) -> "Column":
        self.extend(numbers)
        return self

    @property
    def values(self) -> np.ndarray:
        """All numbers in one array; from now on none can be added."""
        if self._values is None and self._file is None:
            self._values = np.frombuffer(self._added, self._kind) if self._added else np.empty(0, self._kind)
        elif self._values is None:
            assert self._file is not None
            self._write()
            self._values = np.frombuffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ), self._kind)
            self._file.close()
            self._file = None
        assert self._values is not None
        return self._values

    def _write(self) -> None:
        try:
            if self._file is None:
                cache_dir().mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(buffering=0, dir=cache_dir())  # noqa: SIM115 - mapped, then closed
            unwritten = memoryview(self._added).cast("B")
            while unwritten:
                unwritten = unwritten[self._file.write(unwritten) :]
        except OSError as problem:
            raise UserError(
                f"the tokens of the rows cannot be written to {cache_dir()}: {problem.strerror}",
                "is the disk full? to put the cache elsewhere, set HF_HOME",
            ) from problem
        self._added = array(self._kind)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: Any) -> Any:
        return self.values[index].tolist()

    def __iter__(self) -> Iterator[int]:
        for begin in range(0, len(self), 1000):
            yield from self.values[begin : begin + 1000].tolist()

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Iterable) else NotImplemented

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype, copy=copy)


class Ragged:
    """Sequences of integers of any length, end to end in one column."""

    def __init__(self) -> None:
        self._values, self._bounds = Column("i"), Column()
        self._bounds.append(0)

    @classmethod
    def of(cls, values: np.ndarray, bounds: np.ndarray) -> "Ragged":
        """Make sequences that are there already: sequence i is `values[bounds[i] : bounds[i + 1]]`."""
        sequences = cls()
        sequences._values, sequences._bounds = Column.of(values), Column.of(bounds)
        sequences.finish()
        return sequences

    def append(self, sequence: Sequence[int] | np.ndarray) -> None:
        self._values.extend(sequence)
        self._bounds.append(len(self._values))

    def extend(self, values: np.ndarray, lengths: np.ndarray) -> None:
        """Add sequences that stand end to end in `values`."""
        self._bounds.extend(len(self._values) + np.cumsum(lengths))
        self._values.extend(values)

    def finish(self) -> None:
        """Make all sequences readable; no more are added."""
        self.values, self.bounds = self._values.values, self._bounds.values

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.bounds)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.bounds[index] : self.bounds[index + 1]]
