"""Build the steps of cleaning in their order, run documents through them, and count what each did."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from llmkit.data.cleaning import filters, repair
from llmkit.data.cleaning.personal_data import scrub
from llmkit.data.cleaning.repair import Step
from llmkit.recipe.cleaning import Clean

COMPARING = ("exact_duplicates", "overlap", "near_duplicates")  # the steps that need all documents
KEEP = 3  # examples of what a step did


def _builders(table: Clean) -> dict[str, tuple[bool, Callable[[], Step]]]:
    """List the steps that look at one document, in their order: whether each is wanted, and how it is made."""
    form = table.normal_form or "NFC"
    return {
        "html": (table.html, lambda: repair.html),
        "repair": (table.repair, lambda: repair.repair),
        "normal_form": (table.repair or table.normal_form is not None, lambda: repair.normal_form(form)),
        "control_characters": (table.control_characters, lambda: repair.control_characters),
        "whitespace": (table.whitespace, lambda: repair.whitespace),
        "boilerplate": (
            table.boilerplate or bool(table.boilerplate_patterns),
            lambda: repair.boilerplate(table.boilerplate, table.boilerplate_patterns),
        ),
        "c4": (table.c4, lambda: filters.c4(table)),
        "gopher": (table.gopher, lambda: filters.gopher(table)),
        "gopher_repetition": (table.gopher_repetition, lambda: filters.gopher_repetition(table)),
        "languages": (bool(table.languages), lambda: filters.language(table)),
        "personal_data": (bool(table.personal_data) or table.presidio, lambda: scrub(table)),
        "stop_words": (bool(table.stop_words), lambda: repair.stop_words(table.stop_words or ())),
        "length": (
            any((table.min_characters, table.max_characters, table.min_words, table.max_words)),
            lambda: filters.length(table),
        ),
    }


def single_document_steps(table: Clean) -> dict[str, Step]:
    return {name: build() for name, (wanted, build) in _builders(table).items() if wanted}


def step_names(table: Clean) -> list[str]:
    one_by_one = [name for name, (wanted, _) in _builders(table).items() if wanted]
    return one_by_one + [name for name in COMPARING if getattr(table, name)]


@dataclass
class Tally:
    """What a step has done so far; `examples` of it, KEEP at most."""

    num_in: int = 0
    num_changed: int = 0
    num_dropped: int = 0
    rules: dict[str, int] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Add what the step did to the documents that come behind those of this one."""
        self.num_in += other.num_in
        self.num_changed += other.num_changed
        self.num_dropped += other.num_dropped
        for rule, number in other.rules.items():
            self.rules[rule] = self.rules.get(rule, 0) + number
        self.examples += other.examples[: KEEP - len(self.examples)]

    def report(self) -> dict[str, Any]:
        numbers = {"in": self.num_in, "out": self.num_in - self.num_dropped}
        done = {"changed": self.num_changed, "dropped": self.num_dropped, "examples": self.examples}
        return numbers | done | ({"rules": dict(Counter(self.rules).most_common())} if self.rules else {})


def run_steps(
    documents: Iterable[str], steps: Mapping[str, Step], tallies: Mapping[str, Tally], examples: bool = True
) -> Iterator[str]:
    """Run the documents through all steps and yield those that pass; a text of which nothing is left is dropped.

    The report repeats no personal data: if some is found in a document, at any step, the report shows no more of it
    than the text around the tag. Which documents may be shown depends on each of them alone, so that the first KEEP of
    all are among the first KEEP of each shard.
    """
    for text in documents:
        shown: list[tuple[Tally, str]] = []
        sources: list[str] = []  # the texts that examples were, or might have been, taken from
        before = text
        for name, step in steps.items():
            tally = tallies[name]
            tally.num_in += 1
            after = step(before, cast("Counter[str]", tally.rules)) or ""
            if after != before:
                tally.num_dropped += not after
                tally.num_changed += bool(after)
                masked = name == "personal_data"
                if masked:
                    shown, sources = [], []
                sources += [after] if masked else [before, after]
                if examples and len(tally.examples) < KEEP:
                    shown.append((tally, example(before, after, masked)))
            before = after
            if not before:
                break
        else:
            yield before
        if shown and any(holds_personal_data(source, steps) for source in sources):
            continue
        for tally, quoted in shown:
            tally.examples.append(quoted)


def holds_personal_data(text: str, steps: Mapping[str, Step]) -> bool:
    """Tell whether the step that masks personal data, if there is one, finds some in a text."""
    mask = steps.get("personal_data")
    return mask is not None and mask(text, Counter()) != text


def example(before: str, after: str, masked: bool) -> str:
    """Quote what was dropped, or the first change before and after it; 120 characters at most."""
    if not after:
        return "" if masked else _excerpt(before, 0, 120)
    changes = (index for index, (old, new) in enumerate(zip(before, after, strict=False)) if old != new)
    start = max(0, next(changes, min(len(before), len(after))) - 15)
    if masked:
        return _excerpt(after, start, 120)
    return f"{_excerpt(before, start, 58)} -> {_excerpt(after, start, 58)}"


def _excerpt(text: str, start: int, length: int) -> str:
    """Quote `length` characters from `start` on, with escapes for those that cannot be seen."""
    written = repr(text[start : start + length])[1:-1]
    return written if len(written) <= length else written[: length - 1] + "\u2026"
