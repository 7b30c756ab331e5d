"""Ask the Hub: pin each repository to a commit, and explain its errors."""

import json
import logging
import os
import pickle
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from llmkit import disk
from llmkit.errors import UserError, in_words, say, scrub
from llmkit.process import COMMITS

Kind = Literal["model", "dataset"]

BUSY = (408, 429, 500, 502, 503, 504)
WAITS = (1, 2, 4, 8)  # seconds between the attempts to reach a Hub that is busy
PATIENCE = 3.0  # seconds until a Hub that takes no connection counts as absent
LOG_IN = "log in with `hf auth login` (or set HF_TOKEN)"
# transformers' messages for missing weights, or none in this format.
SAFETENSORS_WANTED = re.compile(r"no file named model\.safetensors|does not appear to have a file named .*safetensors")

# Files of a model that are JSON objects; and which file upstream's modules read, by how their names begin.
OBJECTS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "adapter_config.json")
UPSTREAM = {"transformers", "tokenizers", "peft", "datasets", "huggingface_hub", "safetensors", "torch"}
READ_BY = {
    "configuration_": "config.json",
    "modeling_": "config.json",
    "tokenization_": "tokenizer.json or tokenizer_config.json",
    "safetensors": "model.safetensors",
}

# A file of a repository at a commit, as the clients ask for it.
AT_COMMIT = re.compile(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([0-9a-f]{40})/(.+)")

_trouble = ""  # why the Hub is no longer asked, as the end of a sentence about it


def check(repo_id: str, kind: Kind, revision: str | None = None) -> str | None:
    """Ask the Hub once for the commit of `repo_id` that this process and its children read.

    The clients' own five silent retries took 47 s for one tokenizer; here a busy Hub is asked again, and the user is
    told. Without a network, or if the Hub stays busy, this process and its children use the cache alone; the result is
    then the commit in the cache, or None. Raises UserError for an id that is unknown, gated or private.
    """
    commits_by_key, key = commits(), _key(repo_id, kind, revision)
    if key not in commits_by_key:
        revision_commit = None if is_offline() else _ask(repo_id, kind, revision)
        if revision_commit is not None:
            _note_in_cache(repo_id, kind, revision, revision_commit)
        elif is_offline():
            revision_commit = _in_cache(repo_id, kind, revision)
        if revision_commit is None:
            return None
        commits_by_key[key] = revision_commit
        os.environ[COMMITS] = json.dumps(commits_by_key)
    return commits_by_key[key]


def commit(name: str, revision: str | None = None) -> str | None:
    """Return the commit at which to read the model `name`, so that a push during a start cannot mix two versions.

    For a folder, and where no commit is known, returns `revision` as it is.
    """
    return revision if disk.exists(Path(name)) else check(name, "model", revision) or revision


def commits() -> dict[str, str]:
    """Return the commit of each repository read, by id: `org/model`, `org/model@branch`, `datasets/org/rows`."""
    return dict(json.loads(os.environ.get(COMMITS, "{}")))


def _key(repo_id: str, kind: Kind, revision: str | None) -> str:
    return f"{'datasets/' * (kind == 'dataset')}{repo_id}{f'@{revision}' if revision else ''}"


def _ask(repo_id: str, kind: Kind, revision: str | None) -> str | None:
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    _quiet()
    timeout = httpx2.Timeout(10.0, connect=PATIENCE)
    with loading(repo_id, kind):
        for wait in (*WAITS, None):
            if not reachable():
                go_offline("cannot be reached (no network?)")
                break
            try:
                info = HfApi().repo_info(repo_id, repo_type=kind, revision=revision, timeout=timeout)  # type: ignore[arg-type]
                if info.gated:
                    HfApi().auth_check(repo_id, repo_type=kind)
                return info.sha
            except HfHubHTTPError as problem:
                status = problem.response.status_code if problem.response is not None else 0
                if status not in BUSY:
                    raise
                if wait is None:
                    go_offline(f"keeps answering {status}")
                    break
                retry_after = problem.response.headers.get("Retry-After", "")
                seconds = max(wait, min(int(retry_after), 60)) if retry_after.isdigit() else wait
                say(f"the Hub at {_endpoint()} answers {status}: trying again in {seconds} s")
                time.sleep(seconds)
            except httpx2.ReadTimeout:
                go_offline("does not answer")
                break
            except (httpx2.HTTPError, OSError):
                go_offline("cannot be reached (no network?)")
                break
    return None


def reachable() -> bool:
    """Whether the Hub, or the proxy in front of it, accepts a connection in time at any of its addresses.

    The clients' timeout applies to each address in turn, and name resolution has none.
    """
    from urllib.request import getproxies, proxy_bypass

    from huggingface_hub import constants

    url = urlsplit(constants.ENDPOINT)
    proxies = {} if proxy_bypass(url.hostname or "") else getproxies()
    if proxy := proxies.get(url.scheme) or proxies.get("all"):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = url.port or {"https": 443, "http": 80}.get(url.scheme, 1080)
    reached, over = threading.Event(), threading.Event()

    def connect(address: tuple[str, int]) -> None:
        with suppress(OSError, ValueError), socket.create_connection(address, PATIENCE):
            reached.set()
            over.set()

    def look_up() -> None:
        with suppress(OSError, ValueError):
            addresses = {address[4][:2] for address in socket.getaddrinfo(url.hostname, port, type=socket.SOCK_STREAM)}
            attempts = [threading.Thread(target=connect, args=(address,), daemon=True) for address in addresses]
            for attempt in attempts:
                attempt.start()
            for attempt in attempts:
                attempt.join()
        over.set()

    threading.Thread(target=look_up, daemon=True).start()
    over.wait(PATIENCE)
    return reached.is_set()


def _note_in_cache(repo_id: str, kind: Kind, revision: str | None, commit: str) -> None:
    """Record in the cache which commit `revision` means, for a later start without the Hub.

    Files that are requested by commit leave no such reference
    (https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if revision == commit:
        return
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo_id, repo_type=kind))
    reference = folder / "refs" / (revision or constants.DEFAULT_REVISION)
    with suppress(OSError):  # the cache may be read-only
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit)


def _in_cache(repo_id: str, kind: Kind, revision: str | None) -> str | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RevisionResolutionError

    with suppress(RevisionResolutionError, HFValidationError):
        resolved = HfApi().resolve_revision(repo_id, repo_type=kind, revision=revision, local_files_only=True)
        return str(resolved.resolved)
    return None


def go_offline(trouble: str) -> None:
    """Make this process and its children use the Hub's cache alone; `trouble` ends a sentence about the Hub."""
    from huggingface_hub import constants

    global _trouble
    _trouble = trouble
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:  # it has read the environment already
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True


@contextmanager
def unchanged() -> Iterator[None]:
    """Ask the Hub again afterwards if it was asked before: what `go_offline` does meanwhile does not stay.

    The environment is left to the caller.
    """
    from huggingface_hub import constants

    global _trouble
    trouble, offline = _trouble, constants.HF_HUB_OFFLINE
    try:
        yield
    finally:
        _trouble, constants.HF_HUB_OFFLINE = trouble, offline
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_HUB_OFFLINE = offline


@contextmanager
def loading(repo_id: str, kind: Kind) -> Iterator[None]:
    """Turn errors of the clients while a Hub id or a folder is read into a UserError that says what to do."""
    _quiet()
    # Without this, transformers starts a thread that asks a service on the Hub to convert pickled weights.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    try:
        yield
    except UserError:
        raise
    except Exception as problem:
        mistake = _explain(problem, f"{kind} `{repo_id}`", repo_id, kind)
        if mistake is None:
            raise
        raise mistake from problem


def _explain(problem: Exception, what: str, repo_id: str, kind: Kind) -> UserError | None:
    import httpx2
    from huggingface_hub import errors

    chain = list(_causes(problem))

    def caused_by(*kinds: type[BaseException]) -> BaseException | None:
        return next((cause for cause in chain if isinstance(cause, kinds)), None)

    page = f"{_endpoint()}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
    if caused_by(errors.GatedRepoError):
        return UserError(
            f"the {what} is gated: its owners want you to accept their terms first",
            f"open {page}, accept, then {LOG_IN}",
        )
    if caused_by(errors.RevisionNotFoundError):
        return UserError(f"the {what} has no such revision", f"see its revisions: {page}/tree/main")
    if caused_by(errors.RepositoryNotFoundError):
        return UserError(f"the Hub knows no {what}", f"check the spelling; if it is private, {LOG_IN}")
    if caused_by(errors.HFValidationError):
        return UserError(
            f"`{repo_id}` is neither a path that exists nor a Hub id",
            "a Hub id has the form `organisation/name`; a path in a recipe is relative to the recipe",
        )
    if not disk.exists(Path(repo_id)) and (
        caused_by(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
        or (is_offline() and isinstance(problem, OSError))
    ):
        trouble = _trouble or ("" if is_offline() else "cannot be reached")
        reason = f"the Hub at {_endpoint()} {trouble}" if trouble else "HF_HUB_OFFLINE is set"
        others = cached(kind, besides=repo_id)
        return UserError(
            f"{reason}, and the {what} is missing from the cache or incomplete there",
            f"{f'in the cache: {others}' if others else 'nothing else is cached'}; you can also name a folder on "
            "this machine",
        )
    http_error = caused_by(errors.HfHubHTTPError)
    if isinstance(http_error, errors.HfHubHTTPError) and not isinstance(http_error, errors.EntryNotFoundError):
        if http_error.response is not None and http_error.response.status_code in (401, 403):
            return UserError(f"the Hub denies this login access to the {what}: {_first_line(http_error)}", LOG_IN)
        return UserError(
            f"the Hub at {_endpoint()} could not deliver the {what}: {_first_line(http_error)}",
            "try again later; what has been downloaded is kept",
        )
    if download_error := caused_by(httpx2.HTTPError, ConnectionError):
        return UserError(
            f"the {what} could not be downloaded: {_first_line(download_error)}",
            "try again: what has been downloaded is kept",
        )
    if isinstance(problem, pickle.UnpicklingError):  # torch.load with weights_only
        return UserError(
            f"the weights of the {what} are a pickle that holds more than tensors: it was not opened, as it would "
            "run code",
            "ask somebody who trusts them to save them as model.safetensors, or choose another model",
        )
    passed = {part for frame in traceback.extract_tb(problem.__traceback__) for part in Path(frame.filename).parts}
    if not isinstance(problem, OSError | ValueError | ImportError | RuntimeError) and not passed & UPSTREAM:
        return None  # a mistake of ours
    if code_error := code_refused(problem, repo_id):
        return code_error
    message = _in_one_line(problem)
    if SAFETENSORS_WANTED.search(message) and _has_pickle(repo_id):
        return UserError(
            f"the weights of the {what} are a pickle (pytorch_model.bin), which can run code when it is opened",
            "look for one with model.safetensors; or read it in a recipe, without running its code: "
            "model.use_safetensors = false (the run saves safetensors)",
        )
    if message.startswith("Couldn't find cache") and not is_offline():  # upstream's last resort where no file matches
        message = f"it has no such data_files (its files: {page}/tree/main)"
    if kind == "dataset":
        hint = "check data.name (its configuration), data.split and data.data_files"
    elif SAFETENSORS_WANTED.search(message):
        hint = 'it has no weights: train it from scratch (model.init = "scratch"), or choose another model'
    else:
        hint = "is it complete, and in Hugging Face's layout (config.json, model.safetensors, tokenizer.json)?"
    if kind == "model" and disk.is_dir(Path(repo_id)):
        message = _said_of(Path(repo_id), problem)
    return UserError(f"the {what} could not be loaded: {message}", hint)


def _said_of(folder: Path, problem: Exception) -> str:
    """Say what upstream failed on in the folder of a model: a file that is not JSON, else what it says itself.

    The file is then the one that the module of the failure reads, where that tells.
    """
    for file in disk.within(folder, "*.json"):
        try:
            is_object = isinstance(json.loads(file.read_bytes()), dict)
        except (OSError, ValueError, RecursionError) as damage:
            return f"{file.name} is not JSON: {in_words(damage)}"
        if not is_object and file.name in OBJECTS:
            return f"{file.name} is not a JSON object"
    modules = [Path(frame.filename).stem for frame in traceback.extract_tb(problem.__traceback__)]
    if type(problem).__name__ == "SafetensorError":
        modules = ["safetensors"]
    names = [name for module in reversed(modules) for start, name in READ_BY.items() if module.startswith(start)]
    known = next((name for name in names if any(disk.is_file(folder / each) for each in name.split(" or "))), "")
    return f"{known}: {_in_one_line(problem)}" if known else _in_one_line(problem)


def read_adapter(file: str) -> dict[str, Any]:
    """Read an `adapter_config.json`; raise ValueError for one that does not name the model that it adapts."""
    content = json.loads(Path(file).read_text())
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    if not isinstance(base, str) or not base or not isinstance(content.get("revision"), str | None):
        raise ValueError(f"{Path(file).name} names no model as base_model_name_or_path, or an odd revision of it")
    return dict(content)


def code_refused(problem: Exception, name: str) -> UserError | None:
    """Return the error for a model that needs Python code of its own, which may not run; None for other problems."""
    if "trust_remote_code=True" not in str(problem):
        return None
    page = str(Path(name).absolute()) if disk.exists(Path(name)) else f"{_endpoint()}/{name}/tree/main"
    return UserError(
        f"the model `{name}` needs the Python code that comes with it, which llmkit does not run unless you allow it",
        f"read it first: {page}; in a recipe, model.trust_remote_code = true allows it (generate, predict, evaluate "
        "and merge never run it)",
    )


def _has_pickle(name: str) -> bool:
    import httpx2
    from huggingface_hub import HfApi

    files = ("pytorch_model.bin", "pytorch_model.bin.index.json")
    if disk.exists(Path(name)):
        return any(disk.is_file(Path(name, file)) for file in files)
    with suppress(httpx2.HTTPError, OSError):
        return any(HfApi().file_exists(name, file) for file in files)
    return False


def cached(kind: Kind, besides: str = "") -> str:
    """List the ten last used ids of this kind in the Hub's cache, without `besides`, as one line."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return ""
    candidates = [repo for repo in repos if repo.repo_type == kind and repo.repo_id != besides]
    candidates.sort(key=lambda repo: -repo.last_accessed)
    return ", ".join([repo.repo_id for repo in candidates[:10]] + ["..."] * (len(candidates) > 10))


def _causes(problem: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = problem
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _first_line(problem: BaseException) -> str:
    return (scrub(str(problem)).strip() or type(problem).__name__).splitlines()[0]


def _in_one_line(problem: BaseException) -> str:
    """Join the first two lines of an error (the second often names what exists instead)."""
    kind = in_words(problem).removesuffix(" ".join(str(problem).split()))
    said = scrub(" ".join(str(problem).strip().splitlines()[:2]))
    return kind + " ".join(said.split())


@cache
def _ask_once_for_what_is_missing() -> None:
    """Let the clients ask once for a file that a commit lacks, and take the cache's word for it afterwards.

    A commit does not change, and the cache holds a mark for each such file; but upstream's libraries look at it seldom,
    and asked for `adapter_config.json`, `glue.py` and others some fifteen times at every start.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def client() -> Any:
        made = default_client_factory()
        made.send = partial(_send, made.send)  # type: ignore[method-assign]
        return made

    set_client_factory(client)


def _send(send: Callable[..., Any], request: Any, **options: Any) -> Any:
    """Send a request of the clients, unless it asks whether there is a file that the cache knows to be missing."""
    if request.method == "HEAD" and (asked := AT_COMMIT.search(request.url.path)):
        import httpx2
        from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

        kind, repo_id, at, file = asked.groups()
        kind = "model" if kind is None else kind.removesuffix("s")
        if try_to_load_from_cache(repo_id, file, revision=at, repo_type=kind) is _CACHED_NO_EXIST:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": at}
            return httpx2.Response(404, headers=headers, request=request)
    return send(request, **options)


def _quiet() -> None:
    """Silence the clients' logs except for waits; the rest is repeated in the error."""
    import huggingface_hub.utils.logging  # noqa: F401  it sets up the handler

    _ask_once_for_what_is_missing()
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_is_wait)
        handler.setFormatter(logging.Formatter("the Hub has problems: %(message)s"))
    logging.getLogger("datasets").setLevel(logging.ERROR)


def _is_wait(record: logging.LogRecord) -> bool:
    return record.getMessage().startswith(("Retrying in", "Rate limited", "Trying to resume"))


def is_offline() -> bool:
    """Tell whether the Hub is not to be contacted: by --offline, HF_HUB_OFFLINE, or as it does not answer."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _endpoint() -> str:
    """Return the address of the Hub, for messages."""
    from huggingface_hub import constants

    return scrub(constants.ENDPOINT)
