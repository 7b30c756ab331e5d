"""The Hub's answers in words: an unknown id, a gated one, no network at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from llmkit.errors import UserError

Kind = Literal["model", "dataset"]


def check(repo_id: str, kind: Kind, revision: str | None = None) -> str | None:
    """Ask the Hub once whether `repo_id` can be read; its commit hash, or None where the Hub is not asked or not well.

    One request without retries: the clients' own five silent retries cost 47 s for one tokenizer. Where there is no
    network, this process and its children go on from the cache alone. Raises UserError for an id that is unknown,
    gated or private.
    """
    import httpx2
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if constants.HF_HUB_OFFLINE:
        return None
    with loading(repo_id, kind):
        try:
            timeout = httpx2.Timeout(10.0, connect=3.0)
            info = HfApi().repo_info(repo_id, repo_type=kind, revision=revision, timeout=timeout)  # type: ignore[arg-type]
            if info.gated:
                HfApi().auth_check(repo_id, repo_type=kind)
            return info.sha
        except HFValidationError as problem:
            raise UserError(
                f"`{repo_id}` is neither a path that exists nor a Hub id",
                "a Hub id reads `organisation/name`; check the path, which is relative to the recipe",
            ) from problem
        except HfHubHTTPError as problem:
            if problem.response is not None and problem.response.status_code in (408, 429, 500, 502, 503, 504):
                return None  # the clients wait and try again
            raise
        except (httpx2.HTTPError, OSError):
            go_offline()
            return None


def go_offline() -> None:
    """Let this process and its children read the Hub's cache alone."""
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


@contextmanager
def loading(repo_id: str, kind: Kind) -> Iterator[None]:
    """Turn what the Hub's clients raise while `repo_id` is read into a UserError that says what to do."""
    import httpx2
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except UserError:
        raise
    except Exception as problem:
        chain = list(_causes(problem))
        for cause in chain:
            if isinstance(cause, GatedRepoError):
                raise UserError(
                    f"the {kind} `{repo_id}` is gated: its owners want you to accept their terms first",
                    f"open {_endpoint()}/{'datasets/' if kind == 'dataset' else ''}{repo_id}, accept, then log in "
                    "with `hf auth login` (or set HF_TOKEN)",
                ) from problem
            if isinstance(cause, RevisionNotFoundError):
                raise UserError(f"the {kind} `{repo_id}` has no such revision: {_first_line(cause)}") from problem
            if isinstance(cause, RepositoryNotFoundError):
                raise UserError(
                    f"the Hub knows no {kind} `{repo_id}`",
                    "check the spelling; if it is private, log in with `hf auth login` (or set HF_TOKEN)",
                ) from problem
        if any(isinstance(c, LocalEntryNotFoundError | OfflineModeIsEnabled) for c in chain) or _offline():
            raise UserError(
                f"no network (or offline mode), and the {kind} `{repo_id}` is not in the cache",
                f"in the cache: {cached(kind) or 'nothing'}; or name a folder on this machine",
            ) from problem
        if any(isinstance(c, HfHubHTTPError | httpx2.HTTPError | ConnectionError) for c in chain):
            raise UserError(
                f"the Hub at {_endpoint()} could not give the {kind} `{repo_id}`: {_first_line(problem)}",
                "try again later; what has been downloaded is kept",
            ) from problem
        if isinstance(problem, OSError | ValueError | ImportError):
            raise UserError(f"the {kind} `{repo_id}` could not be loaded: {_first_line(problem)}") from problem
        raise


def cached(kind: Kind) -> str:
    """The ids of this kind in the Hub's cache, as one line."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return ""
    return ", ".join(sorted(repo.repo_id for repo in repos if repo.repo_type == kind))


def _causes(problem: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = problem
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
