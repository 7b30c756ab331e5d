"""Publish a finished run on the Hub: the model, its card and its recipe; what holds rows of the data only if asked."""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmkit import disk, hub
from llmkit.errors import RunError, UserError, in_bytes, say, scrub
from llmkit.recipe.tasks import TASKS
from llmkit.recipe.toml import leaves, toml_value
from llmkit.runs import directory as runs
from llmkit.runs.finished import one_task_of, record_of

# What `--include` adds: it may hold rows of the data, and paths and versions of the machine.
INCLUDED = {
    "report": (runs.REPORT_FILE,),
    "predictions": (runs.PREDICTIONS_FILE,),
    "record": (runs.RECORD_FILE,),
    "logs": (runs.METRICS_FILE, runs.LAUNCH_LOG),  # and the samples in it
}
_PATH = re.compile(r"""(?<![\w.:/])(?:~|\.{0,2})/(?:[^"\n]+(?=")|[^\s"'`]+)""")  # in a comment, quoted or not
_RECORD_SENTENCE = re.compile(r"`recipe\.toml` is the recipe and `run\.json` the record:[^.]*\.")


def push(
    run: str, repo_id: str, license: str, public: bool = False, include: Sequence[str] = (), dry_run: bool = False
) -> str | None:
    """Upload a finished run to the repository `repo_id` of the Hub in one commit; return its address.

    What is uploaded is listed first, on stderr. With `dry_run` nothing is sent, the card is printed, and the result is
    None.

    Args:
        run: A run directory.
        repo_id: OWNER/NAME; it is created if it is not there.
        license: The Hub's identifier of a licence.
        public: Let everybody read the repository.
        include: Keys of `INCLUDED`.
        dry_run: Only show.

    Raises:
        UserError: The run cannot be published like this, or the Hub refuses.
    """
    directory = Path(run)
    files = files_to_push(directory, repo_id, license, include)
    say(f"push     {run} -> {repo_id} ({'public' if public else 'private'}, licence {license})")
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    for name, size in sizes.items():
        say(f"         {in_bytes(size):>8}  {name}")
    say(f"         {in_bytes(sum(sizes.values())):>8}  in all")
    if include:
        say("warning  what --include adds may hold rows of your data, paths and the names of your machine")
    if dry_run:
        card = files[runs.CARD_FILE]
        print(card.decode() if isinstance(card, bytes) else card.read_text())  # noqa: T201
        return None
    return _upload(files, repo_id, public)


def files_to_push(directory: Path, repo_id: str, license: str, include: Sequence[str]) -> dict[str, Path | bytes]:
    """Return what is uploaded: by its name there, a file of the run or what is written in its place."""
    if not runs.is_run(directory):
        raise UserError(f"`{directory}` is not a run directory: it has no {runs.RECORD_FILE}", "name one: runs/NAME")
    if not runs.is_finished(directory):
        raise UserError(f"the run `{directory}` is not finished", "finish it with --resume, then publish it")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise UserError(f"`{repo_id}` is not the name of a repository", "write OWNER/NAME, such as ada/reviews")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        raise UserError(
            f"--license: `{license}` is not an identifier of a licence",
            "write one of https://hf.co/docs/hub/repositories-licenses, such as apache-2.0, mit, cc-by-4.0 or other",
        )
    if unknown := [name for name in include if name not in INCLUDED]:
        raise UserError(f"--include: there is no `{unknown[0]}`", f"choose from {', '.join(INCLUDED)}")
    record = record_of(str(directory))
    files: dict[str, Path | bytes] = {
        runs.CARD_FILE: card(directory, record, repo_id, license, "record" in include).encode(),
        runs.RECIPE_FILE: shortened(directory / runs.RECIPE_FILE).encode(),
    }
    names = [*record.get("files", {}), runs.LOSS_PICTURE]
    if "files" not in record:  # of an earlier version
        names += [file.name for file in sorted(directory.iterdir()) if file.suffix in (".json", ".safetensors")]
        names = [name for name in names if name != runs.RECORD_FILE]
    for name in names:
        if name in files:  # an adapter's record of earlier code names the card of peft
            continue
        if disk.is_file(directory / name):
            files[name] = directory / name
        elif name in record.get("files", {}):
            raise UserError(f"`{directory / name}` is missing", f"look with `llmkit check {directory}`")
    for name in dict.fromkeys(name for key in include for name in INCLUDED[key]):
        if disk.is_file(directory / name):
            files[name] = (
                scrub((directory / name).read_text()).encode() if name.endswith("json") else (directory / name)
            )
    return files


def card(directory: Path, record: dict[str, Any], repo_id: str, license: str, with_record: bool) -> str:
    """Return the model card for the Hub: the run's, with licence, results, and the snippet that loads this model."""
    from huggingface_hub import EvalResult, ModelCard

    from llmkit.metrics import evaluation_metrics
    from llmkit.training.model_card import loading

    task = one_task_of(str(directory))
    base = _base_of_adapter(directory)
    found = ModelCard((directory / runs.CARD_FILE).read_text())
    head: Any = found.data
    head.license = license
    head.model_name = repo_id.split("/")[1]
    data = record.get("settings", {}).get("data", {})
    from_hub = record.get("data", {}).get("revision") is not None
    name = str(data.get("path", "the data")) if from_hub else Path(str(data.get("path", "the data"))).name
    head.eval_results = [
        EvalResult(
            task_type=TASKS[task].pipeline or task,
            dataset_type=name if from_hub else "other",
            dataset_name=f"{name}, held out",
            metric_type=key.removeprefix("eval_"),
            metric_value=round(value, 6),
        )
        for key, value in evaluation_metrics(record.get("metrics", {})).items()
    ] or None
    head.metrics = sorted({each.metric_type for each in head.eval_results or ()}) or None
    text = str(found)
    snippet = loading(repo_id, TASKS[task].auto_class, base)
    text = re.sub(r"^```python\n.*?^```$", lambda _: f"```python\n{snippet}\n```", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(rf"^# {re.escape(directory.name)}$", f"# {repo_id.split('/')[1]}", text, flags=re.MULTILINE)
    return text if with_record else _RECORD_SENTENCE.sub("`recipe.toml` is the recipe.", text)


def _base_of_adapter(directory: Path) -> str | None:
    """Return the model that the run adapts; raise UserError for one that nobody else has."""
    import json

    config = directory / "adapter_config.json"
    if not disk.is_file(config):
        return None
    base = str(json.loads(config.read_text())["base_model_name_or_path"])
    if disk.exists(Path(base)) or base.startswith((".", "/")):
        raise UserError(
            f"`{directory}` is an adapter of `{base}`, a folder that others do not have",
            f"merge them first: llmkit merge {directory} --output NEW; or publish `{base}` and train from there",
        )
    return base


def shortened(recipe: Path) -> str:
    """Return the text of a recipe in which paths of this machine are cut to their last part."""
    text = recipe.read_text()
    for value in leaves(tomllib.loads(text)).values():
        for path in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
            if isinstance(path, str) and "\n" not in path and _is_of_this_machine(path):
                text = text.replace(toml_value(path), toml_value(Path(path).name or "data"))
    lines = [_PATH.sub(lambda path: Path(path[0]).name, line) if line.startswith("#") else line
             for line in text.splitlines(keepends=True)]  # fmt: skip
    return scrub("".join(lines))


def _is_of_this_machine(text: str) -> bool:
    return text.startswith(("/", "~", "./", "../")) or ("/" in text and disk.exists(Path(text)))


def _upload(files: dict[str, Path | bytes], repo_id: str, public: bool) -> str:
    import httpx2
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    api = HfApi()
    operations = [
        CommitOperationAdd(name, str(file) if isinstance(file, Path) else file) for name, file in files.items()
    ]
    try:
        with hub.loading(repo_id, "model"):
            try:
                private = api.repo_info(repo_id).private
            except RepositoryNotFoundError:
                private = None
            if private is False and not public:
                raise UserError(f"`{repo_id}` exists and is public", "say so with --public, or name another repository")
            try:
                api.create_repo(repo_id, private=not public, exist_ok=True)
            except HfHubHTTPError as problem:
                raise _refused(problem, repo_id) from problem
        done = api.create_commit(repo_id, operations, commit_message="Upload a model trained with llmkit")
    except UserError:
        raise
    except HfHubHTTPError as problem:
        raise _refused(problem, repo_id) from problem
    except (RuntimeError, OSError, httpx2.HTTPError) as problem:
        raise RunError(
            f"the upload to `{repo_id}` broke off: {scrub(' '.join(str(problem).split()))}",
            "nothing of it is published, as it is one commit; run the command again",
        ) from problem
    if private is True and public:
        say(f"note     `{repo_id}` was private before, and still is: its settings on the Hub change that")
    return str(done.repo_url)


def _refused(problem: Any, repo_id: str) -> UserError:
    """Say that the Hub answered a request to write with an error."""
    status = problem.response.status_code if problem.response is not None else 0
    if status in (401, 403):
        return UserError(
            f"the Hub does not let you write to `{repo_id}` ({status})",
            f"{hub.LOG_IN}; the token must be allowed to write, and OWNER must be you or an organization of yours",
        )
    said = scrub(" ".join(str(problem).split()))
    return RunError(f"the Hub does not take `{repo_id}`: {said}", "nothing of it is published; run the command again")
