"""Copy a run to an address while it trains (`output_mirror`), and fetch it from there to go on on another machine.

At the mirror a checkpoint is what it is on the disk: a folder `checkpoint-N` whose manifest names every file. The
manifest is copied last and removed first, so one that is copied or removed by half counts for nothing. Beside the
files of the manifest it holds what else `--resume` needs: the recipe, and the metrics up to its step. The finished
model comes after the checkpoints, and its record, `run.json`, after the model.
"""

import json
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llmkit import disk, remote
from llmkit.errors import UserError, in_bytes, in_words, quantity, say, scrub
from llmkit.remote import reaching
from llmkit.runs import checkpoint, rebuild
from llmkit.runs import directory as runs
from llmkit.runs.checkpoint import MANIFEST, PREFIX, TRAINER_STATE

PROBE = ".writable"
HINT = "name another place with output_mirror=ADDRESS, or none with output_mirror="


class Mirror:
    """The copy of the run in `directory`, whose id is `run`, at an address; made from it in a thread of its own.

    A copy that fails is told and tried again at the next checkpoint; it never ends the training.
    """

    def __init__(self, address: str, directory: Path, run: str) -> None:
        self.shown, self.directory, self.run = scrub(address), directory, run
        self._store = Store(address)
        self._due, self._closing = threading.Event(), False
        self._choice = threading.Lock()  # held while a checkpoint is chosen to be copied, or some are removed
        self._copying = ""  # the name of the checkpoint that is being copied
        self._rule: tuple[int, int | None, int | None] | None = None  # step, limit and best step of the last rotation
        self._thread: threading.Thread | None = None

    @property
    def is_begun(self) -> bool:
        """Tell whether there was anything to copy since this process began."""
        return self._thread is not None

    def saved(self, step: int, limit: int | None, best: int | None) -> None:
        """Copy what is new, soon: a checkpoint of `step` was written; `limit` and `best` are those of its rotation."""
        self._rule = (step, limit, best)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
            self._thread.start()
        self._due.set()

    @contextmanager
    def spared(self) -> Iterator[str]:
        """Yield the name of the checkpoint that is being copied, "" for none; meanwhile no other is begun."""
        with self._choice:
            yield self._copying

    def _work(self) -> None:
        while not self._closing:
            self._due.wait()
            self._due.clear()
            problem = self.bring_up_to_date()
            if problem and not self._closing:
                goes_on = "training goes on, and the next checkpoint tries again"
                say(f"warning  not copied to {self.shown}: {problem}; {goes_on}")

    def close(self, finished: bool) -> None:
        """Copy what is still missing, and the model of a run that is `finished`; say what could not be copied."""
        say(f"mirror   copying to {self.shown}")
        try:
            if self._thread is not None:
                self._closing = True
                self._due.set()
                self._thread.join()
                self._thread = None
            if self._rule is not None:  # what was spared because it was being copied
                last, limit, best = self._rule
                checkpoint.rotate(self.directory, self.run, limit, best, last)
            problem = self.bring_up_to_date() or (self._copy_model() if finished else "")
        except (KeyboardInterrupt, SystemExit):
            say(f"warning  THE COPY AT {self.shown} IS NOT COMPLETE: it was interrupted")
            raise
        if problem:
            say(
                f"warning  THE COPY AT {self.shown} IS NOT COMPLETE: {problem}",
                f"         all of the run is in `{self.directory}`; the same command with --resume copies the rest",
            )
        else:
            what = "the finished model and its checkpoints are" if finished else "the checkpoints are"
            say(f"mirror   {what} at {self.shown}")

    def bring_up_to_date(self) -> str:
        """Copy the checkpoints that the mirror lacks, the newest first; then remove those that the run has removed.

        Returns what went wrong, "" where nothing did.
        """
        step = ""
        try:
            there = self._store.manifests()
            if others := {str(manifest["run"]) for manifest in there.values()} - {self.run}:
                return f"it holds {quantity(len(others), 'other run')}"
            while chosen := self._choose(there):
                folder, manifest = chosen
                step = f"{folder.name}: "
                self._store.put_checkpoint(folder, manifest)
                there[manifest["step"]] = manifest
            step = ""
            left = set(self._store.steps()) - there.keys()  # by a copy that was broken off
            for gone in (*self._expired(there), *left):  # all that stay are whole there
                self._store.remove_checkpoint(gone)
        except Exception as problem:  # of whatever library: the training does not depend on it
            return f"{step}{_said(problem)}"
        finally:
            with self._choice:
                self._copying = ""
        return ""

    def _choose(self, there: Mapping[int, Mapping[str, Any]]) -> tuple[Path, dict[str, Any]] | None:
        """Choose the newest whole checkpoint of the run that is to be `there` and is not; it is then not removed."""
        with self._choice:
            own = {}
            for folder in checkpoint.folders(self.directory):
                manifest = checkpoint.read_manifest(folder)
                if isinstance(manifest, dict) and manifest["run"] == self.run:
                    own[int(manifest["step"])] = folder, manifest
            expired = self._expired(own)
            missing = [step for step in own if there.get(step) != own[step][1] and step not in expired]
            self._copying = own[missing[0]][0].name if missing else ""
            return own[missing[0]] if missing else None

    def _expired(self, steps: Iterable[int]) -> list[int]:
        """Return those of the steps of checkpoints that the last rotation would remove."""
        if self._rule is None:
            return []
        last, limit, best = self._rule
        return checkpoint.expired(sorted((step for step in steps if step <= last), reverse=True), limit, best)

    def _copy_model(self) -> str:
        """Copy the finished model, its record last; return what went wrong, "" where nothing did."""
        try:
            record = (self.directory / runs.RECORD_FILE).read_bytes()
            if self._store.read(runs.RECORD_FILE) == record:
                return ""
            names = [str(path.relative_to(self.directory)) for path in sorted(self.directory.rglob("*"))]
            for name in names:
                if _is_of_model(name) and (self.directory / name).is_file() and name != runs.RECORD_FILE:
                    self._store.put(self.directory / name, name)
            self._store.write(record, runs.RECORD_FILE)
        except Exception as problem:
            return f"the model: {_said(problem)}"
        return ""


def _said(problem: Exception) -> str:
    return problem.message if isinstance(problem, UserError) else in_words(problem)


def _is_of_model(name: str) -> bool:
    """Tell whether a file of a run, by its name below it, belongs to the model: no checkpoint, and nothing hidden."""
    parts = Path(name).parts
    return not parts[0].startswith(PREFIX) and not any(part.startswith(".") for part in parts)


class Store:
    """The place at an address, as files below it; what it or the connection raises is a UserError."""

    def __init__(self, address: str) -> None:
        self.address = address
        with reaching(address):
            self.fs, path = remote.file_system(address)
        self.root = path.rstrip("/")

    def steps(self) -> list[int]:
        """List the steps of the checkpoints, whole or not."""
        named = [name.removeprefix(PREFIX) for name in self.names("") if name.startswith(PREFIX)]
        return [int(step) for step in named if runs.is_number(step)]

    def manifests(self) -> dict[int, dict[str, Any]]:
        """Read the manifest of every checkpoint that has one, by step; one that is damaged is none."""
        found = {}
        for step in self.steps():
            manifest = checkpoint.parse_manifest(self.read(f"{PREFIX}{step}/{MANIFEST}"))
            if isinstance(manifest, dict) and manifest["step"] == step:
                found[step] = manifest
        return found

    def names(self, folder: str) -> list[str]:
        """List the names in a folder; none where there is none."""
        with reaching(self.address):
            self.fs.invalidate_cache()
            try:
                entries = self.fs.ls(f"{self.root}/{folder}".rstrip("/"), detail=False)
            except FileNotFoundError:
                return []
        return [str(entry).rstrip("/").rpartition("/")[2] for entry in entries]

    def files(self) -> list[str]:
        """List every file, by its name below the address."""
        with reaching(self.address):
            self.fs.invalidate_cache()
            return [str(path).removeprefix(f"{self.root}/") for path in self.fs.find(self.root)]

    def read(self, name: str) -> bytes | None:
        """Read a small file; None where there is none."""
        with reaching(self.address):
            try:
                return bytes(self.fs.cat_file(f"{self.root}/{name}"))
            except FileNotFoundError:
                return None

    def get(self, name: str, target: Path) -> None:
        """Fetch a file."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with reaching(self.address):
            self.fs.get_file(f"{self.root}/{name}", str(target))

    def put(self, source: Path, name: str) -> None:
        """Copy a file there."""
        with reaching(self.address):
            self.fs.put_file(str(source), f"{self.root}/{name}")

    def write(self, content: bytes, name: str) -> None:
        """Write a small file there."""
        with reaching(self.address):
            self.fs.pipe_file(f"{self.root}/{name}", content)

    def check_writable(self) -> None:
        """Raise UserError where nothing can be written."""
        self.write(b"", PROBE)
        with reaching(self.address):
            self.fs.rm_file(f"{self.root}/{PROBE}")

    def put_checkpoint(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Copy a checkpoint, its manifest last; one of its step that is there is none from the beginning on."""
        name = folder.name
        self.remove_checkpoint(int(manifest["step"]))
        for file in manifest["files"]:
            self.put(folder / file, f"{name}/{file}")
        for beside, size in ((runs.RECIPE_FILE, None), (runs.METRICS_FILE, int(manifest["metrics_bytes"]))):
            with suppress(FileNotFoundError):
                self.write((folder.parent / beside).read_bytes()[:size], f"{name}/{beside}")
        with reaching(self.address):
            for file, expected in manifest["files"].items():
                if (size := self.fs.info(f"{self.root}/{name}/{file}")["size"]) != expected["bytes"]:
                    raise ConnectionError(f"{file} has {size:,} bytes there instead of {expected['bytes']:,}")
        self.put(folder / MANIFEST, f"{name}/{MANIFEST}")

    def remove_checkpoint(self, step: int) -> None:
        """Remove a checkpoint or what is left of one, its manifest first."""
        folder = f"{PREFIX}{step}"
        with reaching(self.address):
            self.fs.invalidate_cache()
            with suppress(FileNotFoundError):
                self.fs.rm_file(f"{self.root}/{folder}/{MANIFEST}")
            if self.names(folder):
                self.fs.rm(f"{self.root}/{folder}", recursive=True)


# ---- before training -----------------------------------------------------------------------------------------------


def check(address: str, run: str) -> None:
    """Raise UserError where the run cannot be copied to an address: it holds another, or cannot be written."""
    store, shown = Store(address), scrub(address)
    try:
        there = {str(manifest["run"]) for manifest in store.manifests().values()}
        finished = json.loads(store.read(runs.RECORD_FILE) or b"{}")
        if (there | {finished.get("id", run)}) - {run}:
            raise UserError(
                f"`{shown}` already holds another run",
                "name another place with output_mirror; to go on with that run, add --resume in an empty folder",
            )
        store.check_writable()
    except (OSError, ValueError) as problem:
        raise UserError(f"output_mirror: `{shown}` cannot be used: {in_words(problem)}", HINT) from problem
    except UserError as mistake:
        if mistake.hint.startswith("name another place"):
            raise
        raise UserError(f"output_mirror: {mistake.message}", f"{mistake.hint}; or {HINT}") from mistake


def pull(address: str, directory: Path) -> None:
    """Fetch the newest whole checkpoint from a mirror into a run's directory, unless it has that or a newer one.

    With it comes the best one that it names and, of a finished run, the model. A directory that holds something else is
    left to the caller to refuse; so is one in which another process trains. Raises UserError where the mirror is that
    of another run, or cannot be read.
    """
    from filelock import FileLock, Timeout

    store, shown = Store(address), scrub(address)
    there = store.manifests()
    others = disk.is_dir(directory) and not runs.may_begin(directory) and not runs.is_run(directory)
    if not there or runs.is_finished(directory) or (others and not checkpoint.folders(directory)):
        return
    run = runs.read_record(directory).get("id")
    if run is not None and any(manifest["run"] != run for manifest in there.values()):
        raise UserError(f"`{shown}` is the mirror of another run than `{directory}`", f"{HINT}; or move that away")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(directory / runs.LOCK_FILE, timeout=0):
            _pull(store, there, directory, shown)
    except Timeout:
        return
    except OSError as problem:
        raise UserError(
            f"`{shown}` cannot be fetched into `{directory}`: {problem.strerror or problem}", "free some disk space"
        ) from problem


def _pull(store: Store, there: Mapping[int, Mapping[str, Any]], directory: Path, shown: str) -> None:
    own, _ = checkpoint.newest(directory, None)
    for step in sorted(there, reverse=True):
        if own is not None and own.step >= step:
            return
        fetched = _fetch(store, there[step], directory, shown)
        if fetched is None:
            continue
        best = there.get(json.loads((fetched.path / TRAINER_STATE).read_text()).get("best_global_step") or step)
        if best is not None and isinstance(checkpoint.examine(directory / f"{PREFIX}{best['step']}"), str):
            _fetch(store, best, directory, shown)
        for name in (runs.RECIPE_FILE, runs.METRICS_FILE):
            if (content := store.read(f"{PREFIX}{step}/{name}")) is not None:
                with disk.drafted(directory / name) as out:
                    out.write(content)
        rebuild.write(directory, fetched)
        _fetch_model(store, directory)
        return


def _fetch(store: Store, manifest: Mapping[str, Any], directory: Path, shown: str) -> checkpoint.Checkpoint | None:
    """Fetch a checkpoint; None, and it is said, where it is not whole."""
    name = f"{PREFIX}{manifest['step']}"
    total = sum(file["bytes"] for file in manifest["files"].values())
    say(f"fetching {name} from {shown}: {in_bytes(total)}")
    draft = checkpoint.begin(directory, int(manifest["step"]))
    try:
        progress = remote.Progress(f"fetching {name}", total)
        for file, expected in (*manifest["files"].items(), (MANIFEST, {"bytes": 0})):
            try:
                store.get(f"{name}/{file}", draft / file)
            except UserError as mistake:
                if mistake.message.startswith(remote.BROKEN):
                    raise
                say(f"warning  {name} at {shown} is passed over: {mistake.message}")
                return None
            progress.add(expected["bytes"])
        found = checkpoint.accept(draft)
        if isinstance(found, str):
            say(f"warning  {name} at {shown} is passed over: {found}")
            return None
        return found
    finally:
        checkpoint.abandon(draft)


def _fetch_model(store: Store, directory: Path) -> None:
    """Fetch the model of a finished run, its record last; where it is damaged, the checkpoint makes it anew."""
    with suppress(ValueError):
        record = json.loads(store.read(runs.RECORD_FILE) or b"{}")
        if record.get("status") != "finished" or record.get("id") != runs.read_record(directory).get("id"):
            return
        with tempfile.TemporaryDirectory(prefix=".draft-", dir=directory) as folder:
            draft = Path(folder)
            names = [name for name in store.files() if _is_of_model(name) and name != runs.RECORD_FILE]
            for name in names:
                store.get(name, draft / name)
            files = record.get("files", {})
            if any(not (draft / name).is_file() for name in files) or checkpoint.files_of(draft, only=files) != files:
                say("warning  the finished model at the mirror is not whole: the checkpoint makes it again")
                return
            for name in names:
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                (draft / name).replace(directory / name)
        runs.write_json(directory / runs.RECORD_FILE, record)
