"""`llmkit serve`: load a model, listen, and end when asked to, with what runs finished first."""

import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit import disk, process
from llmkit.errors import UserError, say
from llmkit.runs.finished import check_model, data_of, one_task_of, record_of

if TYPE_CHECKING:
    from llmkit.models.quantization import Precision
    from llmkit.serve.app import Limits, Service

KEY = "LLMKIT_SERVE_KEY"  # the environment variable with the key that clients must send
LOCAL = ("127.0.0.1", "::1", "localhost")
CONNECTIONS = 1024
FINISHING = 30  # seconds that requests have to finish when the server ends
PREDICTED = 512  # rows that may be predicted together: two requests of the largest size


def serve(
    name: str,
    host: str,
    port: int,
    key_file: Path | None,
    hosts: Sequence[str],
    origins: Sequence[str],
    quantize: "Precision | None",
    max_tokens: int,
    max_waiting: int,
    max_body: int,
) -> int:
    """Serve a model until a signal ends the server; return the exit code.

    Args:
        name: A run, a checkpoint, a folder or a Hub id.
        host: The address to listen on.
        port: 0 takes a free one.
        key_file: A file that holds the key; None takes `LLMKIT_SERVE_KEY`, if that is set.
        hosts: Names, beside localhost and addresses, that the server answers to.
        origins: Sites whose pages may use it.
        quantize: "int8" or "int4", for a model that writes text.
        max_tokens: New tokens that a request may ask for.
        max_waiting: Rows that may wait; others are answered with 429.
        max_body: Bytes of a request's body.

    Raises:
        UserError: The model, the key or the address cannot be used.
    """
    _need("starlette", "uvicorn")
    key = read_key(key_file)
    check_model(name)
    with _listening(host, port) as listener:
        from llmkit.serve.app import Limits, application

        service = load(name, Limits(max_tokens, max_body, key, tuple(hosts), tuple(origins)), max_waiting, quantize)
        address = _address(host, listener.getsockname()[1])
        say(f"serving  {service.id} ({service.about['task']}) at {address}")
        say(f"         try it on the page {address}/; Ctrl-C ends it")
        if key is None and host not in LOCAL:
            say(f"warning: whoever reaches {host} can use the model: set {KEY} or --key-file")
        try:
            server_of(application(service)).run(sockets=[listener])
        finally:
            service.worker.close()
    return 0


def load(name: str, limits: "Limits", max_waiting: int, quantize: "Precision | None" = None) -> "Service":
    """Load a model and start the thread that runs it."""
    from llmkit.inference import generate
    from llmkit.inference.predict import predictor
    from llmkit.inference.rows_io import CHUNK
    from llmkit.serve import engines
    from llmkit.serve.app import Service
    from llmkit.serve.worker import Worker

    task = one_task_of(name)
    model_name = name.replace(os.sep, "/").rstrip("/") if not disk.exists(Path(name)) else Path(name).resolve().name
    about: dict[str, Any] = {"task": task}
    if task in ("causal-lm", "chat"):
        from llmkit.models.config import positions

        session = generate.load(name, "causal-lm", {}, None, quantize)
        writer = engines.Writer(session)
        about["chat"] = bool(getattr(session.tokenizer, "chat_template", None))
        about["max_model_len"] = positions(session.model.config)
        about["max_tokens"] = limits.max_tokens
        return Service(model_name, writer, Worker(writer.run, engines.ROWS, writer.budget, max_waiting), limits, about)
    rows = engines.Predictor(*predictor(name, task, quantize))
    about["inputs"] = inputs_of(name, task)
    if task == "masked-lm":
        from llmkit import hub
        from llmkit.models import loading

        about["mask_token"] = loading.load_tokenizer(name, hub.commit(name)).mask_token
    return Service(model_name, rows, Worker(rows.run, PREDICTED, 1, max(max_waiting, CHUNK)), limits, about)


def inputs_of(name: str, task: str) -> list[str]:
    """Return the columns that a row may have: as in the training data or, without one, as usual for the task."""
    if task == "question-answering":
        usual = ["question", "context"]
    elif task == "multiple-choice":
        usual = ["question", "choices"]
    else:
        usual = ["text"]
    if task in ("masked-lm", "token-classification"):
        return usual if task != "masked-lm" else [data_of(name, task).text_column or "text"]
    from llmkit.tasks import row_task

    labels = row_task("seq2seq" if task == "denoising" else task).reader.LABEL_ROLES
    trained = record_of(name).get("columns", {})
    return [column for role, column in trained.items() if role not in labels] or usual


def read_key(file: Path | None) -> str | None:
    """Return the key from a file, or from the environment; UserError for one that is empty or cannot be sent."""
    if file is None:
        key, where = os.environ.get(KEY), KEY
    else:
        where = f"--key-file: `{file}`"
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as problem:
            raise UserError(f"{where} cannot be read: {problem}", "name a text file that holds the key") from problem
    if key is not None and (not key or not key.isascii() or not key.isprintable() or " " in key):
        raise UserError(f"{where} holds no key", "a key is a line of ASCII letters, digits and signs, without blanks")
    return key


def _need(*packages: str) -> None:
    """Raise UserError where the extra is not installed."""
    from importlib.util import find_spec

    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise UserError(f"serving needs the packages {' and '.join(packages)}", "pip install 'llmkit[serve]'")


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket that has the address, before the model is loaded; requests wait until then."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as problem:
        raise UserError(
            f"cannot listen on {host}, port {port}: {problem.strerror or problem}",
            "name another --port (0 takes a free one) or --host",
        ) from problem
    with listener:
        yield listener


def _address(host: str, port: int) -> str:
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def server_of(app: Any) -> Any:
    """Make uvicorn's server, which ends at SIGINT or SIGTERM; requests that run, and wait, are finished first."""
    import uvicorn

    from llmkit.serve.connections import Protocol

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            before = process.handle(dict.fromkeys((signal.SIGINT, signal.SIGTERM), self.handle_exit))
            try:
                yield
            finally:
                process.handle(before)

        def handle_exit(self, sig: int, frame: Any) -> None:
            if not self.should_exit:
                say(f"stopping once what runs is finished, in {FINISHING} seconds at most; Ctrl-C again stops at once")
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=FINISHING,
        backlog=2048,
    )
    return Server(config)
