"""Answer an error that nothing else has answered: in three lines, with the traceback in a file."""

import os
import sys
import tempfile
import traceback
from pathlib import Path

from llmkit.errors import RunError, say, scrub, tell

SHOW = "LLMKIT_TRACEBACK"  # the environment variable that asks for the traceback on the screen
FILE = "traceback.txt"

_run: Path | None = None  # where the traceback goes: the directory of the run that this process is about


def belongs_to(run: Path) -> None:
    """Let the traceback of a later error go into the directory of `run`."""
    global _run
    _run = run


def answer(problem: BaseException) -> None:
    """Say what was being done, the error's own words, and where its traceback is; with LLMKIT_TRACEBACK=1 all of it."""
    whole = scrub("".join(traceback.format_exception(problem)))
    words = scrub(" ".join(f"{type(problem).__name__}: {problem}".split()))
    frames = [frame for frame in traceback.extract_tb(problem.__traceback__) if "/llmkit/" in frame.filename]
    where = f" in {Path(frames[-1].filename).stem}.{frames[-1].name}" if frames else ""
    command = " ".join(["llmkit", *sys.argv[1:2]])
    rank = os.environ.get("RANK", "0")
    if os.environ.get(SHOW) == "1" or rank != "0":  # what other processes of a run say is in its launch.log
        say(*whole.rstrip().splitlines())
    file = _kept(whole, FILE if rank == "0" else f"traceback-{rank}.txt")
    hint = f"the traceback is in {file}; {SHOW}=1 shows it" if file else f"{SHOW}=1 shows the traceback"
    tell(RunError(f"`{command}` met an error that llmkit does not know{where}", hint, (words,)))


def _kept(text: str, name: str) -> Path | None:
    """Write the traceback into the run's directory, else into a temporary file; None where neither can be written."""
    try:
        if _run is not None and _run.is_dir():
            file = _run / name
            file.write_text(text, errors="replace")
            return file
    except OSError:
        pass
    try:
        handle, path = tempfile.mkstemp(prefix="llmkit-traceback-", suffix=".txt")
        with os.fdopen(handle, "w", errors="replace") as out:
            out.write(text)
        return Path(path)
    except OSError:
        return None
