"""The Hub's answers in words: an unknown id, a gated one, no network at all."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from llmkit.errors import UserError, say

Kind = Literal["model", "dataset"]

BUSY = (408, 429, 500, 502, 503, 504)
WAITS = (1, 2, 4, 8)  # seconds between the attempts to reach a Hub that is busy
LOG_IN = "log in with `hf auth login` (or set HF_TOKEN)"

_trouble = ""  # why the Hub is not asked any more, as the end of a sentence about it


def check(repo_id: str, kind: Kind, revision: str | None = None) -> str | None:
    """Ask the Hub once whether `repo_id` can be read; its commit hash, or None where the Hub is not asked or not well.

    The clients' own five silent retries cost 47 s for one tokenizer; here a busy Hub is asked again and the user told.
    Where there is no network, or the Hub stays busy, this process and its children go on from the cache alone. Raises
    UserError for an id that is unknown, gated or private.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if _offline():
        return None
    _quiet()
    timeout = httpx2.Timeout(10.0, connect=3.0)
    with loading(repo_id, kind):
        for wait in (*WAITS, None):
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


def go_offline(trouble: str) -> None:
    """Let this process and its children read the Hub's cache alone; `trouble` ends a sentence about the Hub."""
    from huggingface_hub import constants

    global _trouble
    _trouble = trouble
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


@contextmanager
def loading(repo_id: str, kind: Kind) -> Iterator[None]:
    """Turn what the clients raise while a Hub id or a folder is read into a UserError that says what to do."""
    _quiet()
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
    if not isinstance(problem, OSError | ValueError | ImportError | RuntimeError | SafetensorError):
        return None
    said = _in_one_line(problem)
    if said.startswith("Couldn't find cache") and not _offline():  # upstream's last resort where no file matches
        said = f"it has no such data_files ({page}/tree/main lists them)"
    if kind == "dataset":
        hint = "data.name is its configuration, data.split its split, data.data_files its files"
    elif "model.safetensors" in said and "does not appear to have a file" in said:
        hint = 'no weights are there: train it from scratch (model.init = "scratch"), or choose another model'
    else:
        hint = "is it whole, and a model in Hugging Face's layout (config.json, model.safetensors, tokenizer.json)?"
    return UserError(f"the {what} could not be loaded: {said}", hint)


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
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]


def _in_one_line(problem: BaseException) -> str:
    """The first two lines (the second one often names what there is instead)."""
    return " ".join(" ".join((str(problem).strip() or type(problem).__name__).splitlines()[:2]).split())


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
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
