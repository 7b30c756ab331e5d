"""Clean running text: choose and run the steps, report what they did, and cache the result.

The order is fixed. Each document goes through
  html, repair, normal_form, control_characters, whitespace, boilerplate  (its text becomes readable),
  c4, gopher, gopher_repetition, languages                                (is it good enough, as it was written),
  personal_data, stop_words, length                                       (what is left of it),
and then, compared with other documents,
  exact_duplicates, overlap, near_duplicates                              (the costliest last; it may read texts again).
Overlap comes before near duplicates: a document that it drops must not cause near duplicates of it to be dropped too.

The cleaned text is written once, as JSON lines, and cached under a hash of what made it.
"""

import json
import os
import shutil
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import xxhash

from llmkit.data.cleaning import duplicates, filters, repair
from llmkit.data.cleaning.personal_data import scrub
from llmkit.data.cleaning.repair import Step
from llmkit.data.files import digest
from llmkit.data.text.documents import READING, Documents
from llmkit.data.text.pack import cache_dir, new_cache_entry
from llmkit.data.text.token_cache import locked
from llmkit.data.words import word_list
from llmkit.errors import UserError, say
from llmkit.recipe.cleaning import Clean

_VERSION = 1  # of the steps: raise it when any of them gives another text than before
_COMPARING = ("exact_duplicates", "overlap", "near_duplicates")  # the steps that need all documents
_LIBRARIES = {
    "html": ("selectolax",),
    "repair": ("ftfy",),
    "control_characters": ("regex",),
    "languages": ("py3langid",),
    "personal_data": ("phonenumbers", "python-stdnum"),
    "near_duplicates": ("rensa",),
}


def clean(documents: Documents, table: Clean, against: Documents | None, name: str) -> tuple[Documents, dict[str, Any]]:
    """Clean documents; return them, read from a cache file in constant memory, and the report on what was done.

    `against` are the evaluation documents that `table.overlap` compares with. `name` names the documents in messages.
    The report says for each step how many documents came in, went out, were changed and dropped, by which rules, with
    up to three examples. Without a step the documents are returned as they are, and the report is empty. Raises
    UserError where no document is left.
    """
    names = _step_names(table)
    if not names:
        return documents, {}
    if table.overlap and against is None:
        raise UserError(
            f"{documents.source}: data.clean.overlap needs validation data, and there is none",
            "set data.validation_fraction or data.validation_split, or unset data.clean.overlap",
        )
    compared = against if table.overlap else None
    key = _key(documents, table, compared, names)
    folder = cache_dir() / digest(READING, key)
    report = _cached(folder, documents)
    if report is None:
        with locked(folder.with_suffix(".lock"), f"cleans {documents.source}"):
            report = _cached(folder, documents)  # by the process that this one waited for
            if report is None:
                if folder.exists():
                    say(f"the cache of {documents.source} was damaged ({folder}): cleaning again")
                    shutil.rmtree(folder, ignore_errors=True)
                with new_cache_entry(folder) as draft:
                    _write(documents, table, compared, draft, folder.name)
                report = _cached(folder, documents)
    if report is None:
        raise UserError(
            f"the cache {folder} cannot be read back", "is the disk full? to put the cache elsewhere, set HF_HOME"
        )
    report = {"documents": name, **report}
    if report["in"] and not report["out"]:
        steps = sorted(report["steps"], key=lambda step: -report["steps"][step]["dropped"])
        raise UserError(
            f"{documents.source}: cleaning removes all {report['in']:,} {name} documents",
            f"the step {steps[0]} drops the most: loosen or unset it",
            tuple(line.strip() for line in lines(report)[1:]),
        )
    cleaned = Documents(
        lambda: _read(folder / "text.jsonl"), digest("cleaned", key), documents.source, findings=documents.findings
    )
    return cleaned, report


def clean_streamed(documents: Documents, table: Clean) -> Documents:
    """Clean documents while they are read; raise UserError for a step that needs all of them."""
    together = [name for name in _step_names(table) if name in _COMPARING]
    if together:
        raise UserError(
            f"data.clean.{together[0]} needs all documents at once, but data.streaming reads them one by one",
            f"unset data.clean.{together[0]} or data.streaming",
        )
    names = _step_names(table)
    if not names:
        return documents
    steps = _single_document_steps(table)
    return Documents(
        lambda: _run_steps(documents, {name: _Tally(step, keep=0) for name, step in steps.items()}, None),
        digest("cleaned", _key(documents, table, None, names)),
        documents.source,
        findings=documents.findings,
        verify=documents.verify,
    )


def without_comparisons(table: Clean) -> Clean:
    """Copy `table` without the steps that compare documents with each other: for evaluation data."""
    return table.model_copy(update=dict.fromkeys(_COMPARING, False))


# ---- the steps -----------------------------------------------------------------------------------------------------


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


def _single_document_steps(table: Clean) -> dict[str, Step]:
    return {name: build() for name, (wanted, build) in _builders(table).items() if wanted}


def _step_names(table: Clean) -> list[str]:
    one_by_one = [name for name, (wanted, _) in _builders(table).items() if wanted]
    return one_by_one + [name for name in _COMPARING if getattr(table, name)]


@dataclass
class _Tally:
    """A step, and what it has done so far."""

    step: Step
    keep: int = 3  # examples
    num_in: int = 0
    num_changed: int = 0
    num_dropped: int = 0
    rules: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        numbers = {"in": self.num_in, "out": self.num_in - self.num_dropped}
        done = {"changed": self.num_changed, "dropped": self.num_dropped, "examples": self.examples}
        return numbers | done | ({"rules": dict(self.rules.most_common())} if self.rules else {})


def _run_steps(documents: Documents, tallies: Mapping[str, _Tally], mask: Step | None) -> Iterator[str]:
    """Run the documents through all steps and yield those that pass; a text of which nothing is left is dropped.

    The report repeats no personal data: if `mask` finds some in a document, at any step, the report shows no more of it
    than the text around the tag.
    """
    for text in documents:
        shown: list[tuple[_Tally, str, tuple[str, ...]]] = []  # an example, and the texts that it was taken from
        before = text
        for name, tally in tallies.items():
            tally.num_in += 1
            after = tally.step(before, tally.rules) or ""
            if after != before:
                tally.num_dropped += not after
                tally.num_changed += bool(after)
                masked = name == "personal_data"
                if masked:
                    shown = []
                if len(tally.examples) < tally.keep:
                    shown.append((tally, _example(before, after, masked), (after,) if masked else (before, after)))
            before = after
            if not before:
                break
        else:
            yield before
        if mask and any(mask(source, Counter()) != source for *_, sources in shown for source in sources):
            continue
        for tally, example, _ in shown:
            tally.examples.append(example)


def _example(before: str, after: str, masked: bool) -> str:
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


# ---- the cache -----------------------------------------------------------------------------------------------------


def _key(documents: Documents, table: Clean, against: Documents | None, names: list[str]) -> str:
    """Hash what determines the cleaned text; raise UserError for a library or a list of words that is missing."""
    needed = [(name, library) for name in names for library in _LIBRARIES.get(name, ())]
    needed += [("presidio", "presidio-analyzer")] if table.presidio else []
    versions = []
    for name, library in needed:
        try:
            versions.append((library, metadata.version(library)))
        except metadata.PackageNotFoundError:
            wanted = "'llmkit[presidio]'" if name == "presidio" else library
            raise UserError(f"data.clean.{name} needs the package {library}", f"pip install {wanted}") from None
    lists = [
        word_list(given, key) if given not in (None, "en", "zh") else given
        for key, given in (("stop_words", table.stop_words), ("c4_bad_words", table.c4_bad_words))
    ]
    return digest(
        *(_VERSION, documents.fingerprint, table.model_dump(), against.fingerprint if against else None),
        *(lists, versions, unicodedata.unidata_version),
    )


def _write(documents: Documents, table: Clean, against: Documents | None, folder: Path, entry: str) -> None:
    with (folder / "text.jsonl").open("w+b") as out:
        store = _Store(out)
        steps = _single_document_steps(table)
        if table.exact_duplicates:
            steps["exact_duplicates"] = duplicates.exact()
        if against is not None:
            steps["overlap"] = duplicates.overlap(against, table.overlap_ngram, table.overlap_share)
        if table.near_duplicates:
            steps["near_duplicates"] = duplicates.near(
                table.near_threshold, table.near_ngram, lambda: store.end, store.read
            )
        tallies = {name: _Tally(step) for name, step in steps.items()}
        incoming = _Counted(documents)
        for text in _run_steps(incoming.documents, tallies, steps.get("personal_data")):
            store.add(text)
        out.flush()
        os.fsync(out.fileno())
    report = {
        "in": incoming.num_documents,
        "out": store.num_documents,
        "characters_in": incoming.num_characters,
        "characters_out": store.num_characters,
        "steps": {name: tally.report() for name, tally in tallies.items()},
    }
    about = {
        "entry": entry,
        "report": report,
        "content": _content_hash(folder / "text.jsonl"),
        "findings": documents.findings.saved(),
    }
    (folder / "report.json").write_text(json.dumps(about, indent=1))


class _Counted:
    """Count the documents, and their characters, while they are read."""

    def __init__(self, documents: Documents) -> None:
        self.num_documents = self.num_characters = 0

        def read() -> Iterator[str]:
            started, due = time.monotonic(), 10.0  # seconds
            for text in documents:
                self.num_documents += 1
                self.num_characters += len(text)
                yield text
                if (seconds := time.monotonic() - started) > due:
                    done = f"{self.num_documents:,} documents, {self.num_characters / 1e6:,.0f}M characters"
                    say(f"cleaning {documents.source}: {done}, {self.num_characters / 1e6 / seconds:.1f}M a second")
                    due = min(2 * due, due + 600)

        self.documents = Documents(read, documents.fingerprint, documents.source)


class _Store:
    """Write texts as JSON lines; each can be read again by the offset of its line."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.end = self.num_documents = self.num_characters = 0

    def add(self, text: str) -> None:
        # Half a surrogate pair, which JSON can hold, has no UTF-8: it is written so that only Python reads it again.
        line = json.dumps({"text": text}, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        self.file.write(line)
        self.end += len(line)
        self.num_documents += 1
        self.num_characters += len(text)

    def read(self, offset: int) -> str:
        self.file.seek(offset)
        line = self.file.readline()
        self.file.seek(self.end)
        return str(json.loads(line)["text"])


def _read(file: Path) -> Iterator[str]:
    with file.open("rb") as lines_of_text:
        for line in lines_of_text:
            yield json.loads(line)["text"]


def _cached(folder: Path, documents: Documents) -> dict[str, Any] | None:
    """Read the report on what was written before; None where it or the text is missing or not whole.

    What reading the documents showed then is added to their findings.
    """
    try:
        about = json.loads((folder / "report.json").read_text())
        report: dict[str, Any] = about["report"]
        if about.get("entry", folder.name) != folder.name or about["content"] != _content_hash(folder / "text.jsonl"):
            return None
        documents.findings.restore(about["findings"])
        return report
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _content_hash(file: Path) -> str:
    hashed = xxhash.xxh3_128()
    with file.open("rb") as content:
        while chunk := content.read(1 << 20):
            hashed.update(chunk)
    return hashed.hexdigest()


# ---- what the run says ---------------------------------------------------------------------------------------------


def lines(report: Mapping[str, Any]) -> list[str]:
    """Write the report for the screen: a line in all, and one for each step that did something; 100 columns at most."""
    if not report:
        return []
    characters = report["characters_out"] / max(report["characters_in"], 1)
    written = [
        f"cleaning of {report['documents']}: {report['in']:,} documents in, {report['out']:,} out, "
        f"with {characters:.1%} of the characters"
    ]
    for name, step in report["steps"].items():
        done = [f"{step[what]:,} {what}" for what in ("changed", "dropped") if step[what]]
        if done:
            rules = ", ".join(f"{rule} {number:,}" for rule, number in step.get("rules", {}).items())
            line = f"  {name:<18} {', '.join(done)}" + (f" ({rules})" if rules else "")
            written.append(line if len(line) <= 100 else line[:97].rpartition(",")[0] + ", ...)")
    return written
