"""Read files that stand at an address (s3://, gs://, hf://, https://): each is fetched whole into the cache, by fsspec.

What was fetched lies under the hash of its content, so a file that changed at its address is another file here, and one
that did not is not fetched again. All that reads files reads the local copy; messages name it by its address.
"""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from llmkit import disk, hub
from llmkit.errors import UserError, in_bytes, in_words, quantity, say, scrub, show_as
from llmkit.process import FETCHED

# How an address begins: `s3://`, or `s3:/` where `Path` has taken a slash. One letter is a drive of Windows.
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
EXTRAS = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs")}  # by scheme: the package that reads it, and llmkit's extra
SCHEMES = ("s3", "gs", "hf", "https", "http")
WEB = ("https", "http")
MIRRORS = ("s3", "gs", "file")  # schemes of places to which a run is copied
LOG_IN = {
    "s3": "name your keys: AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "log in: gcloud auth application-default login, or name a key file with GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "log in with `hf auth login` (or set HF_TOKEN); is the repository or bucket spelt right?",
}
# By what a store knows the content of an object, strongest first (S3, Google, the Hub, servers of the web).
IDENTITIES = ("ETag", "etag", "md5Hash", "xet_hash", "blob_id", "Content-MD5", "Digest", "generation")
DATES = ("Last-Modified", "LastModified", "last_modified", "mtime", "updated")
MAGIC = re.compile(r"[*?\[]")
SILENCE = 60  # seconds without a byte after which a connection of the web counts as broken
INTERVAL = 10.0  # seconds between two lines about a long transfer
CHUNK = 2**20
BROKEN = "the connection to"  # how the message begins that a store was not reached
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # of this machine


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address: its name below what was asked for, its size, and what changes with its content."""

    path: str
    name: str
    size: int | None
    identity: str | None


def scheme_of(text: str) -> str:
    """Return the scheme of an address, in lower case; "" for what is none, or is a path that exists."""
    match = ADDRESS.match(text)
    return "" if match is None or disk.exists(text) else match[1].lower()


def whole(text: str) -> str:
    """Return an address with the slash that `Path` has taken."""
    match = ADDRESS.match(text)
    if match is None:
        return text
    return f"{match[1].lower()}://{'/' * (match[1].lower() == 'file')}{match[2]}"


def missing_package(scheme: str) -> str:
    """Say how to install what reads the addresses of a scheme; "" where it is installed."""
    from importlib.util import find_spec

    package, extra = EXTRAS.get(scheme, ("", ""))
    return f"pip install 'llmkit[{extra}]'" if package and find_spec(package) is None else ""


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """Turn what a store or the connection to it raises into a UserError that says what to do."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as problem:
        if isinstance(problem, OSError) and problem.errno in OF_THE_DISK:
            raise
        raise _explained(problem, address) from problem


def _explained(problem: Exception, address: str) -> UserError:
    if isinstance(problem, FileNotFoundError) and isinstance(problem.__cause__, Exception):
        problem = problem.__cause__  # fsspec's word for whatever a server of the web or the way to it did
    shown, kind, scheme = scrub(address), type(problem).__name__, scheme_of(address)
    response = getattr(problem, "response", None)  # the Hub's; botocore's is a dict
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    status = getattr(problem, "status", getattr(response, "status_code", None))  # aiohttp's is its own
    if isinstance(problem, FileNotFoundError) or status in (404, 410) or code in ("NoSuchBucket", "NoSuchKey"):
        return UserError(f"there is nothing at `{shown}`", "check the spelling, and that you may see it")
    if isinstance(problem, PermissionError) or status in (401, 403) or "Credentials" in kind:
        hint = LOG_IN.get(scheme, "does it want a login? Download it there, and name the copy")
        return UserError(f"access to `{shown}` is denied: {scrub(in_words(problem))}", hint)
    if isinstance(problem, ImportError):  # it is installed, and something that it needs is not
        hint = f"pip install 'llmkit[{EXTRAS[scheme][1]}]'" if scheme in EXTRAS else "install llmkit again"
        return UserError(f"what reads {scheme}:// cannot be loaded: {scrub(in_words(problem))}", hint)
    if isinstance(status, int):
        return UserError(f"the server answers {status} for `{shown}`", "try again later")
    return UserError(f"{BROKEN} `{shown}` failed: {scrub(in_words(problem))}", "try again: nothing is half written")


def file_system(address: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address, without remembered listings, and the address as it calls it."""
    import fsspec

    options: dict[str, Any] = {"skip_instance_cache": True}
    if scheme_of(address) in WEB:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)  # else 5 min in all
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
    if scheme_of(address) == "file":
        options["auto_mkdir"] = True
    fs, path = fsspec.core.url_to_fs(address, **options)
    return fs, str(path)


# ---- fetching ------------------------------------------------------------------------------------------------------


def fetch(address: str) -> str:
    """Return the path of the local copy of what stands at `address`: a file, a folder, or the files of a glob.

    It is asked for once in this process and its children, which all read the same. Where it cannot be reached, or the
    Hub is not to be contacted, the last copy is read and that is said. Raises UserError where there is none.
    """
    address = whole(address)
    key = hashlib.sha256(address.encode()).hexdigest()[:32]
    fetched = json.loads(os.environ.get(FETCHED, "{}"))
    if key not in fetched or not disk.exists(fetched[key]["root"]):
        from filelock import FileLock

        cache = disk.cache_dir() / "addresses"
        try:
            (cache / "index").mkdir(parents=True, exist_ok=True)
            with FileLock(cache / "index" / f"{key}.lock"):
                fetched[key] = _fetch(address, cache, key)
        except OSError as problem:
            raise UserError(
                f"`{scrub(address)}` cannot be kept in the cache {cache}: {problem.strerror or problem}",
                "free some disk space; to put the cache elsewhere, set HF_HOME",
            ) from problem
        os.environ[FETCHED] = json.dumps(fetched)
    show_as(fetched[key]["root"], fetched[key]["shown"])
    return str(fetched[key]["path"])


def _fetch(address: str, cache: Path, key: str) -> dict[str, str]:
    """Fetch what is not in the cache; return the folder or file of it, the path to read, and how it is called."""
    entry, shown = cache / "index" / f"{key}.json", scrub(address)
    before = _read(entry)
    if hub.is_offline():
        if before is None:
            raise UserError(
                f"`{shown}` is not in the cache, and --offline or HF_HUB_OFFLINE is set", "run it once with a network"
            )
        say(f"note     offline: reading the copy of `{shown}` that was fetched {before['when']}")
        return _place(cache, before, address)
    try:
        with reaching(address):
            fs, path = file_system(address)
            remote = _listed(fs, path, address)
    except UserError as mistake:
        if before is None or not mistake.message.startswith(BROKEN):
            raise
        say(f"warning  {mistake.message}; reading the copy that was fetched {before['when']}")
        return _place(cache, before, address)
    known = all(file.identity is not None for file in remote)
    state = hashlib.sha256(repr([(file.name, file.size, file.identity) for file in remote]).encode()).hexdigest()
    if before is not None and known and before["state"] == state:
        return _place(cache, before, address)
    draft = cache / f".draft-{key}"  # of a process that was killed, too: this one has the lock
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        with reaching(address):
            _download(fs, remote, draft, shown)
            again = _listed(fs, path, address)
        if again != remote:
            raise UserError(f"`{shown}` changed while it was fetched", "try again when it is written")
        digest = _digest(draft)
        target = cache / digest
        if target.exists() and _digest(target) != digest:
            shutil.rmtree(target)
        if not target.exists():
            draft.rename(target)
    except KeyboardInterrupt:
        say(f"stopped  while fetching `{shown}`: nothing of it is kept")
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    record = {
        "state": state,
        "content": digest,
        "files": {file.name: (target / file.name).stat().st_size for file in remote},
        "is_file": remote[0].path == path,
        "when": time.strftime("%Y-%m-%d %H:%M"),
    }
    with disk.drafted(entry, synced=False) as out:
        out.write(json.dumps(record).encode())
    return _place(cache, record, address)


def _read(entry: Path) -> dict[str, Any] | None:
    """Read what the cache knows of an address; None where it knows nothing, or its copy is not whole."""
    try:
        record: dict[str, Any] = json.loads(entry.read_text())
        folder = entry.parents[1] / record["content"]
        if all((folder / name).stat().st_size == size for name, size in record["files"].items()):
            return record
    except (OSError, ValueError, KeyError):
        pass
    return None


def _place(cache: Path, record: Mapping[str, Any], address: str) -> dict[str, str]:
    folder = cache / record["content"]
    if record["is_file"]:
        path = str(folder / next(iter(record["files"])))
        return {"root": path, "path": path, "shown": scrub(address)}
    parent, pattern = _split_pattern(address)
    path = str(Path(glob.escape(str(folder))) / pattern) if pattern else str(folder)
    return {"root": str(folder), "path": path, "shown": scrub(parent)}


def _split_pattern(address: str) -> tuple[str, str]:
    """Split the address of a glob into the folder before its first magic part, and the pattern below it."""
    if scheme_of(address) in WEB or not MAGIC.search(address):
        return address.rstrip("/"), ""
    parts = address.split("/")
    first = next(number for number, part in enumerate(parts) if MAGIC.search(part))
    return "/".join(parts[:first]), "/".join(parts[first:])


def _listed(fs: Any, path: str, address: str) -> list[RemoteFile]:
    """List the files at an address, by name; raise FileNotFoundError where there are none."""
    fs.invalidate_cache()
    if scheme_of(address) in WEB:
        name = unquote(PurePosixPath(urlsplit(address).path).name) or "index"
        return [_file(path, name, fs.info(path))]
    root, pattern = _split_pattern(path) if MAGIC.search(path) else (path.rstrip("/"), "")
    if pattern:
        infos = {each: info for each, info in fs.glob(path, detail=True).items() if info["type"] == "file"}
    else:
        info = fs.info(path)
        if info["type"] == "file":
            return [_file(path, PurePosixPath(path).name, info)]
        infos = fs.find(path, detail=True)
    files = [_file(each, each.removeprefix(f"{root}/"), infos[each]) for each in sorted(infos)]
    files = [file for file in files if file.name and not file.name.endswith("/") and ".." not in file.name.split("/")]
    if not files:
        raise FileNotFoundError(path)
    return files


def _file(path: str, name: str, info: Mapping[str, Any]) -> RemoteFile:
    size = info.get("size")
    identity = next((str(info[key]) for key in (*IDENTITIES, *DATES) if info.get(key)), None)
    return RemoteFile(path, name, None if size is None else int(size), identity)


def _download(fs: Any, remote: Sequence[RemoteFile], draft: Path, shown: str) -> None:
    total = sum(file.size or 0 for file in remote)
    if total > (free := shutil.disk_usage(draft).free):
        raise UserError(
            f"`{shown}` has {in_bytes(total)}, and {in_bytes(free)} are free for the cache",
            "free some disk space; to put the cache elsewhere, set HF_HOME",
        )
    what = f" in {quantity(len(remote), 'file')}" if len(remote) > 1 else ""
    say(f"fetching `{shown}`{f': {in_bytes(total)}{what}' if total else what}")
    progress = Progress(f"fetching `{shown}`", total)
    for file in remote:
        target = draft / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(file.path, str(target), callback=progress.callback())
        if file.size is not None and (came := target.stat().st_size) != file.size:
            raise ConnectionError(f"{came:,} of {file.size:,} bytes came")


class Progress:
    """Says every few seconds how much of a transfer is done."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.begun = self.said = time.monotonic()

    def add(self, count: int) -> None:
        """Count bytes that were moved."""
        self.done += count
        now = time.monotonic()
        if now - self.said >= INTERVAL:
            self.said = now
            share = (
                f"{100 * self.done // self.total} % of {in_bytes(self.total)}" if self.total else in_bytes(self.done)
            )
            say(f"{self.what}: {share}, {in_bytes(self.done / (now - self.begun))}/s")

    def callback(self) -> Any:
        """Return what fsspec tells of the bytes of one file."""
        from fsspec.callbacks import Callback

        counts = self

        class Counting(Callback):
            def relative_update(self, inc: int = 1) -> None:
                counts.add(inc)

        return Counting()


def _digest(folder: Path) -> str:
    """Hash the names and the content of the files of a folder."""
    content = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(file.relative_to(folder)).encode()
        content.update(len(name).to_bytes(8) + name + file.stat().st_size.to_bytes(8))
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                content.update(chunk)
    return content.hexdigest()[:32]
