"""The Hub's answers in words, the commit that each repository is read at, and secrets kept out of what is written."""

import json
import logging
import os
import pickle
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from llmkit.errors import UserError, say

Kind = Literal["model", "dataset"]

BUSY = (408, 429, 500, 502, 503, 504)
WAITS = (1, 2, 4, 8)  # seconds between the attempts to reach a Hub that is busy
PATIENCE = 3.0  # seconds until a Hub that takes no connection counts as absent
LOG_IN = "log in with `hf auth login` (or set HF_TOKEN)"
COMMITS = "LLMKIT_COMMITS"  # in the environment: the children of this process read the same commits
SECRET_NAMES = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD)S?$", re.IGNORECASE)  # of environment variables
SHORTEST_SECRET = 8  # letters: what is shorter is a word like `true`, which other texts hold too
# What transformers says where there are no weights, or none in this format.
SAFETENSORS_WANTED = re.compile(r"no file named model\.safetensors|does not appear to have a file named .*safetensors")

_trouble = ""  # why the Hub is not asked any more, as the end of a sentence about it


def check(repo_id: str, kind: Kind, revision: str | None = None) -> str | None:
    """Ask the Hub once whether `repo_id` can be read; the commit that this process and its children read it at.

    The clients' own five silent retries cost 47 s for one tokenizer; here a busy Hub is asked again and the user told.
    Where there is no network, or the Hub stays busy, this process and its children go on from the cache alone: then it
    is the commit in the cache, or None. Raises UserError for an id that is unknown, gated or private.
    """
    known, key = commits(), _key(repo_id, kind, revision)
    if key not in known:
        found = None if _offline() else _ask(repo_id, kind, revision)
        if found is not None:
            _note_in_cache(repo_id, kind, revision, found)
        elif _offline():
            found = _in_cache(repo_id, kind, revision)
        if found is None:
            return None
        known[key] = found
        os.environ[COMMITS] = json.dumps(known)
    return known[key]


def commit(name: str, revision: str | None = None) -> str | None:
    """What to read the model `name` at: a commit, so that a push during a start cannot mix two versions.

    Of a folder, and where no commit is known, `revision` as it is.
    """
    return revision if Path(name).exists() else check(name, "model", revision) or revision


def commits() -> dict[str, str]:
    """The commit of each repository that was read, by its id: `org/model`, `org/model@branch`, `datasets/org/rows`."""
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
            if not _reachable():
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
                    go_offline(f"answers {status} again and again")
                    break
                asked = problem.response.headers.get("Retry-After", "")
                seconds = max(wait, min(int(asked), 60)) if asked.isdigit() else wait
                say(f"the Hub at {_endpoint()} answers {status}: trying again in {seconds} s")
                time.sleep(seconds)
            except httpx2.ReadTimeout:
                go_offline("does not answer")
                break
            except (httpx2.HTTPError, OSError):
                go_offline("cannot be reached (no network?)")
                break
    return None


def _reachable() -> bool:
    """The Hub, or the proxy before it, takes a connection in time, at any of its addresses.

    The clients' time-out counts for one address after the other, and the look-up of the name has none.
    """
    from urllib.request import getproxies, proxy_bypass

    from huggingface_hub import constants

    url = urlsplit(constants.ENDPOINT)
    proxies = {} if proxy_bypass(url.hostname or "") else getproxies()
    if proxy := proxies.get(url.scheme) or proxies.get("all"):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = url.port or {"https": 443, "http": 80}.get(url.scheme, 1080)
    found, over = threading.Event(), threading.Event()

    def connect(address: tuple[str, int]) -> None:
        with suppress(OSError, ValueError), socket.create_connection(address, PATIENCE):
            found.set()
            over.set()

    def look_up() -> None:
        with suppress(OSError, ValueError):
            addresses = {each[4][:2] for each in socket.getaddrinfo(url.hostname, port, type=socket.SOCK_STREAM)}
            attempts = [threading.Thread(target=connect, args=(each,), daemon=True) for each in addresses]
            for attempt in attempts:
                attempt.start()
            for attempt in attempts:
                attempt.join()
        over.set()

    threading.Thread(target=look_up, daemon=True).start()
    over.wait(PATIENCE)
    return found.is_set()


def _note_in_cache(repo_id: str, kind: Kind, revision: str | None, commit: str) -> None:
    """Let the cache know what `revision` means: files that are asked for by their commit do not, nor a later start
    without the Hub (https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if revision == commit:
        return
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo_id, repo_type=kind))
    reference = folder / "refs" / (revision or constants.DEFAULT_REVISION)
    with suppress(OSError):  # a cache that others own can be read
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit)


def _in_cache(repo_id: str, kind: Kind, revision: str | None) -> str | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RevisionResolutionError

    with suppress(RevisionResolutionError, HFValidationError):
        found = HfApi().resolve_revision(repo_id, repo_type=kind, revision=revision, local_files_only=True)
        return str(found.resolved)
    return None


def go_offline(trouble: str) -> None:
    """Let this process and its children read the Hub's cache alone; `trouble` ends a sentence about the Hub."""
    from huggingface_hub import constants

    global _trouble
    _trouble = trouble
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:  # it has read the environment already
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def scrub(text: str) -> str:
    """`text` without secrets: tokens and keys of the environment, that of `hf auth login`, and passwords in URLs.

    What looks like a token of the Hub goes too, whoever it belongs to.
    """
    from huggingface_hub import constants

    secrets = {value for name, value in os.environ.items() if SECRET_NAMES.search(name)}
    with suppress(OSError, UnicodeDecodeError):
        secrets.add(Path(constants.HF_TOKEN_PATH).read_text().strip())
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, "***")
    text = re.sub(r"hf_[A-Za-z0-9]{10,}", "***", text)
    return re.sub(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s/:@]*):[^\s/@]+@", r"\1:***@", text)


@contextmanager
def loading(repo_id: str, kind: Kind) -> Iterator[None]:
    """Turn what the clients raise while a Hub id or a folder is read into a UserError that says what to do."""
    _quiet()
    # Else transformers asks a service on the Hub to convert a pickle of weights, in a thread.
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
    from safetensors import SafetensorError

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
        return UserError(f"the {what} has no such revision", f"those there are: {page}/tree/main")
    if caused_by(errors.RepositoryNotFoundError):
        return UserError(f"the Hub knows no {what}", f"check the spelling; if it is private, {LOG_IN}")
    if caused_by(errors.HFValidationError):
        return UserError(
            f"`{repo_id}` is neither a path that exists nor a Hub id",
            "a Hub id reads `organisation/name`; a path in a recipe is relative to the recipe",
        )
    if not Path(repo_id).exists() and (
        caused_by(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
        or (_offline() and isinstance(problem, OSError))
    ):
        trouble = _trouble or ("" if _offline() else "cannot be reached")
        why = f"the Hub at {_endpoint()} {trouble}" if trouble else "HF_HUB_OFFLINE is set"
        others = cached(kind, besides=repo_id)
        return UserError(
            f"{why}, and the {what} is not (or not wholly) in the cache",
            f"{f'in the cache: {others}' if others else 'nothing else is there'}; or name a folder on this machine",
        )
    refused = caused_by(errors.HfHubHTTPError)
    if isinstance(refused, errors.HfHubHTTPError) and not isinstance(refused, errors.EntryNotFoundError):
        if refused.response is not None and refused.response.status_code in (401, 403):
            return UserError(f"the Hub refuses the {what} to this login: {_first_line(refused)}", LOG_IN)
        return UserError(
            f"the Hub at {_endpoint()} could not give the {what}: {_first_line(refused)}",
            "try again later; what has been downloaded is kept",
        )
    if broken := caused_by(httpx2.HTTPError, ConnectionError):
        return UserError(
            f"the {what} could not be downloaded: {_first_line(broken)}",
            "try again: what has been downloaded is kept",
        )
    if isinstance(problem, pickle.UnpicklingError):  # torch.load with weights_only
        return UserError(
            f"the weights of the {what} are a pickle with more in it than tensors: it was not opened, for it would "
            "run code",
            "have them saved as model.safetensors by somebody who trusts them, or choose another model",
        )
    if not isinstance(problem, OSError | ValueError | ImportError | RuntimeError | SafetensorError):
        return None
    if refused_code := code_refused(problem, repo_id):
        return refused_code
    said = _in_one_line(problem)
    if SAFETENSORS_WANTED.search(said) and _has_pickle(repo_id):
        return UserError(
            f"the weights of the {what} are a pickle (pytorch_model.bin), which can run code when it is opened",
            "look for one with model.safetensors; a recipe may read it, with no code run, and saves safetensors: "
            "model.use_safetensors = false",
        )
    if said.startswith("Couldn't find cache") and not _offline():  # upstream's last resort where no file matches
        said = f"it has no such data_files ({page}/tree/main lists them)"
    if kind == "dataset":
        hint = "data.name is its configuration, data.split its split, data.data_files its files"
    elif SAFETENSORS_WANTED.search(said):
        hint = 'no weights are there: train it from scratch (model.init = "scratch"), or choose another model'
    else:
        hint = "is it whole, and a model in Hugging Face's layout (config.json, model.safetensors, tokenizer.json)?"
    return UserError(f"the {what} could not be loaded: {said}", hint)


def code_refused(problem: Exception, name: str) -> UserError | None:
    """What to say where transformers would have to run Python code that comes with a model, and may not."""
    if "trust_remote_code=True" not in str(problem):
        return None
    page = str(Path(name).absolute()) if Path(name).exists() else f"{_endpoint()}/{name}/tree/main"
    return UserError(
        f"the model `{name}` is made of Python code that comes with it, and that is not run unasked",
        f"read it first: {page}; in a recipe, model.trust_remote_code = true allows it (generate, predict, evaluate "
        "and merge never run it)",
    )


def _has_pickle(name: str) -> bool:
    import httpx2
    from huggingface_hub import HfApi

    files = ("pytorch_model.bin", "pytorch_model.bin.index.json")
    if Path(name).exists():
        return any(Path(name, file).is_file() for file in files)
    with suppress(httpx2.HTTPError, OSError):
        return any(HfApi().file_exists(name, file) for file in files)
    return False


def cached(kind: Kind, besides: str = "") -> str:
    """The ids of this kind in the Hub's cache, the last used ten, as one line."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return ""
    fitting = [repo for repo in repos if repo.repo_type == kind and repo.repo_id != besides]
    fitting.sort(key=lambda repo: -repo.last_accessed)
    return ", ".join([repo.repo_id for repo in fitting[:10]] + ["..."] * (len(fitting) > 10))


def _causes(problem: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = problem
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _first_line(problem: BaseException) -> str:
    return (scrub(str(problem)).strip() or type(problem).__name__).splitlines()[0]


def _in_one_line(problem: BaseException) -> str:
    """The first two lines (the second one often names what there is instead)."""
    return " ".join(" ".join((scrub(str(problem)).strip() or type(problem).__name__).splitlines()[:2]).split())


def _quiet() -> None:
    """Of what the clients log, the user sees the waits alone; the rest comes again in the error."""
    import huggingface_hub.utils.logging  # noqa: F401  it sets up the handler

    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_is_wait)
        handler.setFormatter(logging.Formatter("the Hub is not well: %(message)s"))
    logging.getLogger("datasets").setLevel(logging.ERROR)


def _is_wait(record: logging.LogRecord) -> bool:
    return record.getMessage().startswith(("Retrying in", "Rate limited", "Trying to resume"))


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _endpoint() -> str:
    """The address of the Hub, for messages."""
    from huggingface_hub import constants

    return scrub(constants.ENDPOINT)
