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
import shutil
import unicodedata
from collections.abc import Mapping
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from llmkit import disk, verified
from llmkit.data.cleaning import comparing, shards
from llmkit.data.cleaning.steps import (
    COMPARING,
    KEEP,
    Tally,
    example,
    holds_personal_data,
    run_steps,
    single_document_steps,
    step_names,
)
from llmkit.data.engines import ALONE, Workers
from llmkit.data.files import digest
from llmkit.data.text.documents import READING, Documents
from llmkit.data.text.token_cache import locked
from llmkit.data.words import word_list
from llmkit.disk import cache_dir
from llmkit.errors import RunError, UserError, say
from llmkit.recipe.cleaning import Clean

_VERSION = 1  # of the steps: raise it when any of them gives another text than before
_LIBRARIES = {
    "html": ("selectolax",),
    "repair": ("ftfy",),
    "control_characters": ("regex",),
    "languages": ("py3langid",),
    "personal_data": ("phonenumbers", "python-stdnum"),
    "near_duplicates": ("rensa",),
}


def clean(
    documents: Documents, table: Clean, against: Documents | None, name: str, workers: Workers = ALONE
) -> tuple[Documents, dict[str, Any]]:
    """Clean documents; return them, read from a cache file in constant memory, and the report on what was done.

    `against` are the evaluation documents that `table.overlap` compares with. `name` names the documents in messages.
    The report says for each step how many documents came in, went out, were changed and dropped, by which rules, with
    up to three examples. Without a step the documents are returned as they are, and the report is empty. Raises
    UserError where no document is left.
    """
    names = step_names(table)
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
                    _discard_works(folder)
                    shutil.rmtree(folder, ignore_errors=True)
                _write(documents, table, compared, folder, workers)
                report = _cached(folder, documents)
    if report is None:
        raise UserError(
            f"the cache {folder} cannot be read back", "is the disk full? to put the cache elsewhere, set HF_HOME"
        )
    _discard_works(folder)  # of a process that was killed when all was done
    report = {"documents": name, **report}
    if report["in"] and not report["out"]:
        steps = sorted(report["steps"], key=lambda step: -report["steps"][step]["dropped"])
        raise UserError(
            f"{documents.source}: cleaning removes all {report['in']:,} {name} documents",
            f"the step {steps[0]} drops the most: loosen or unset it",
            tuple(line.strip() for line in lines(report)[1:]),
        )
    cleaned = Documents(
        lambda: shards.texts_of(folder / "text.jsonl"),
        digest("cleaned", key),
        documents.source,
        findings=documents.findings,
    )
    return cleaned, report


def clean_streamed(documents: Documents, table: Clean) -> Documents:
    """Clean documents while they are read; raise UserError for a step that needs all of them."""
    together = [name for name in step_names(table) if name in COMPARING]
    if together:
        raise UserError(
            f"data.clean.{together[0]} needs all documents at once, but data.streaming reads them one by one",
            f"unset data.clean.{together[0]} or data.streaming",
        )
    names = step_names(table)
    if not names:
        return documents
    steps = single_document_steps(table)
    return Documents(
        lambda: run_steps(documents, steps, {name: Tally() for name in steps}, examples=False),
        digest("cleaned", _key(documents, table, None, names)),
        documents.source,
        findings=documents.findings,
        verify=documents.verify,
    )


def without_comparisons(table: Clean) -> Clean:
    """Copy `table` without the steps that compare documents with each other: for evaluation data."""
    return table.model_copy(update=dict.fromkeys(COMPARING, False))


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


def _write(documents: Documents, table: Clean, against: Documents | None, folder: Path, workers: Workers) -> None:
    """Clean the documents into a cache entry; what is left of a work that was interrupted is not done again."""
    work = folder.with_name(f"{folder.name}-{workers.shard_size}.work")
    try:
        shards.begin(work, table, against, workers)
        read = shards.clean_all(work, documents, workers.engine)
        states = comparing.compare_all(work, read["shards"], workers.engine)
        with shards.whole_folder(work / "result") as draft:
            kept = _write_kept(work, read["shards"], states, draft / "text.jsonl")
            report = {
                "in": read["in"],
                "out": kept["out"],
                "characters_in": read["characters_in"],
                "characters_out": kept["characters_out"],
                "steps": {name: tally.report() for name, tally in kept["steps"].items()},
            }
            about = {
                "entry": folder.name,
                "report": report,
                "content": kept["content"],
                "findings": documents.findings.saved(),
            }
            shards.write_whole(draft / "report.json", json.dumps(about, indent=1).encode())
        del states
        (work / "result").rename(folder)
    except UserError as mistake:
        if not isinstance(mistake, RunError):  # of the documents: they will be others
            shards.discard(work)
        raise
    finally:
        shards.forget()
        comparing.forget()


def _discard_works(folder: Path) -> None:
    """Remove what led to a cache entry, now that it is there."""
    for work in folder.parent.glob(f"{folder.name}-*.work"):
        shards.discard(work)


def _write_kept(work: Path, num_shards: int, states: np.ndarray, file: Path) -> dict[str, Any]:
    """Write the documents that are kept, in their order, and count what each step did to all."""
    steps = shards.steps_of(work)
    compared = {name: state for name, state in comparing.STATES.items() if getattr(shards.table_of(work), name)}
    tallies = {name: Tally() for name in (*steps, *compared)}
    hashed, first, characters, number_kept = xxhash.xxh3_128(), 0, 0, 0
    with file.open("wb") as out:
        for number in range(num_shards):
            for name, saved in shards.manifest_of(work, number)["steps"].items():
                tallies[name].add(Tally(**saved))
            shard = shards.Shard.of(work, number)
            here = states[first : first + len(shard.entries)]
            first += len(here)
            remaining = np.ones(len(here), bool)
            for name, state in compared.items():
                dropped = here == state
                tally = Tally(num_in=int(remaining.sum()), num_dropped=int(dropped.sum()))
                texts = map(shard.text, np.flatnonzero(dropped).tolist())
                shown = (example(text, "", False) for text in texts if not holds_personal_data(text, steps))
                tally.examples = list(islice(shown, KEEP - len(tallies[name].examples)))
                tallies[name].add(tally)
                remaining &= ~dropped
            for lines in shard.lines(remaining):
                out.write(lines)
                hashed.update(lines)
            number_kept += int(remaining.sum())
            characters += int(shard.entries["characters"][remaining].sum())
        disk.sync(out)
    return {"out": number_kept, "characters_out": characters, "steps": tallies, "content": hashed.hexdigest()}


def _cached(folder: Path, documents: Documents) -> dict[str, Any] | None:
    """Read the report on what was written before; None where it or the text is missing or not whole.

    What reading the documents showed then is added to their findings.
    """
    try:
        about = json.loads((folder / "report.json").read_text())
        report: dict[str, Any] = about["report"]
        content = verified.checksum(folder / "text.jsonl")
        if about.get("entry", folder.name) != folder.name or about["content"] != content:
            return None
        documents.findings.restore(about["findings"])
        return report
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
