"""Keep what reading documents to their end shows, for the user, also where their tokens are in the cache already."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Findings:
    """What was found while documents were read; a reading to their end completes it.

    Attributes:
        files: the files that are read, as their names stand in the notes.
        notes: remarks for the user, in their order.
        left_out: of each kind of row that is no document, how many there are.
        columns: the column of the text and those that are not used, of all files that have the same.
    """

    files: Sequence[str] = ()
    notes: dict[str, None] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    columns: dict[tuple[str, tuple[str, ...]], None] = field(default_factory=dict)

    def note(self, remark: str) -> None:
        """Take a remark on a file; one that was made before is not repeated."""
        self.notes[remark] = None

    def saved(self) -> dict[str, Any]:
        """Return all of it as JSON holds it, with the numbers of the files in place of their names."""
        columns = [[text, list(unused)] for text, unused in self.columns]
        return {
            "notes": [self._numbered(note) for note in self.notes],
            "left_out": self.left_out,
            "columns": columns,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take over what an earlier reading of the same content found, perhaps in files of other names."""
        self.notes |= {self._named(note): None for note in saved["notes"]}
        self.left_out |= saved["left_out"]
        self.columns |= {(text, tuple(unused)): None for text, unused in saved["columns"]}

    def _numbered(self, note: str) -> str:
        for number, file in enumerate(self.files):
            note = note.replace(f"`{file}`", f"`\0{number}`")
        return note

    def _named(self, note: str) -> str:
        for number, file in enumerate(self.files):
            note = note.replace(f"`\0{number}`", f"`{file}`")
        return note


def lines(findings: Iterable[Findings]) -> list[str]:
    """Say which column is the text and which are not used."""
    columns = dict.fromkeys(key for found in findings for key in found.columns)
    return [
        f"column `{text}` is the text" + (f", not used: {', '.join(f'`{name}`' for name in unused)}" if unused else "")
        for text, unused in columns
    ]


def left_out(findings: Iterable[Findings]) -> dict[str, int]:
    """Count the rows that are no documents, by kind."""
    counts: Counter[str] = Counter()
    for found in findings:
        counts.update(found.left_out)
    return dict(counts)
