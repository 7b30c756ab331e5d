"""Talk to the user: lines on stderr, JSON on stdout, and the exceptions shown without a traceback; never a secret."""

import json
import math
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmkit.terminal import laid_out, put

# How messages name a line of a file, and an option or a key.
_LINE, _KEY = re.compile(r"`([^`]+)`,? line (\d+)"), re.compile(r"(?:llmkit[ \w]*: )?(--[a-z-]+|[a-z_]+(?:\.\w+)+)\b")
_shown: dict[str, str] = {}  # by the path of a copy in the cache: the address that messages have in its place
_json = False  # whether mistakes are shown to a program
_SECRET_NAMES = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD)S?$", re.IGNORECASE)  # of environment variables
_SHORTEST_SECRET = 8  # characters: a shorter value may be a word such as `true`, which occurs in other texts
# In a URL: user:password@, a long user@ (a token), ?token= and the signature of a signed address.
_PASSWORD = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:/{1,2}[^\s/:@]*):[^\s/\"'`]+@")
_USER = re.compile(rf"([A-Za-z][A-Za-z0-9+.-]*:/{{1,2}})[^\s/:@]{{{_SHORTEST_SECRET},}}@")
_SIGNATURE = re.compile(
    r"(:/\S*[?&][^\s=&?]*(?:token|key|secret|passw(?:or)?d|sig|signature|credential)=)[^\s&`'\"]+", re.IGNORECASE
)


def say(*lines: str) -> None:
    """Write lines to stderr, as stdout is for data alone, without secrets; do nothing if stderr is closed."""
    put(*(laid_out(scrub(line), sys.stderr) for line in lines))


def scrub(text: str) -> str:
    """Remove secrets from `text`: tokens and keys of the environment, that of `hf auth login`, and those in URLs.

    Anything that looks like a token of the Hub is removed too. A URL may have lost a slash, as `Path` writes it. What
    was fetched from an address is called by that.
    """
    for path, name in _shown.items():
        text = text.replace(path, name)
    secrets = {value for name, value in os.environ.items() if _SECRET_NAMES.search(name)}
    with suppress(OSError, ValueError, RuntimeError):  # it cannot be read, or there is no home
        secrets.add(_login().read_text().strip())
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    text = re.sub(r"\bhf_[A-Za-z0-9]{10,}", "***", text)
    if "@" in text or "?" in text:
        text = _PASSWORD.sub(r"\1:***@", _SIGNATURE.sub(r"\1***", _USER.sub(r"\1***@", text)))
    return text


def show_as(path: str, name: str) -> None:
    """Let messages say `name` where they would say `path`: the address of a file in place of its copy in the cache."""
    _shown[path] = name


def _login() -> Path:
    """Return the file with the token of `hf auth login`, as huggingface_hub finds it."""
    of_user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = os.environ.get("HF_HOME") or Path(of_user, "huggingface")
    return Path(os.environ.get("HF_TOKEN_PATH") or Path(home, "token"))


def quantity(count: int, noun: str) -> str:
    """Write a count with its noun: `1 row`, `2,000 rows`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def in_bytes(count: float) -> str:
    """Write a number of bytes: `934 B`, `711 kB`, `6.9 MB`, `1.2 GB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.{int(count < 10 * size or unit == 'GB')}f} {unit}"
    return f"{count:.0f} B"


SPEAKING = ("SafetensorError", "TemplateError", "SecurityError")  # their names add nothing


def in_words(problem: BaseException) -> str:
    """Return what an error of a library says, on one line; its kind as well where that is half of what it says."""
    message, kind = " ".join(str(problem).split()), type(problem).__name__
    if message and (isinstance(problem, OSError | RuntimeError | ValueError) or kind in SPEAKING):
        return message
    return f"{kind}: {message}" if message else kind


@dataclass(frozen=True)
class Place:
    """Where a mistake is, as far as that is known."""

    file: str | None = None
    line: int | None = None
    key: str | None = None


class UserError(Exception):
    """A mistake that the user can correct; the command line prints it and exits with `code`.

    `message` says in one line what is wrong and where (file, line, key, row), `hint` what to do about it; `details`
    has a line for each of several mistakes found at once. `mistakes` are these for a program: each without its place,
    and its place.
    """

    code = 2

    def __init__(
        self,
        message: str,
        hint: str = "",
        details: tuple[str, ...] = (),
        mistakes: tuple[tuple[str, Place | None], ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details
        self.mistakes = mistakes

    def lines(self) -> list[str]:
        """Return what is shown of it."""
        hint = [f"hint: {self.hint}"] if self.hint else []
        return [f"error: {self.message}", *(f"  {detail}" for detail in self.details), *hint]

    def as_object(self) -> dict[str, Any]:
        """Return what a program is told of it; the place is that of the first mistake which has one."""
        told = self.mistakes or tuple((detail.strip(), _place_in(detail)) for detail in self.details)
        places = [place for place in (_place_in(self.message), *(place for _, place in told)) if place is not None]
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint or None,
            "place": asdict(places[0]) if places else None,
            "details": [{"message": message, "place": asdict(place) if place else None} for message, place in told],
        }

    def __str__(self) -> str:
        return "\n".join(self.lines())


class RunError(UserError):
    """A run that fails through no mistake of the user's; shown in the same way, with exit code 1."""

    code = 1


def _place_in(text: str) -> Place | None:
    """Find the place that a message names."""
    line, key = _LINE.search(text), _KEY.match(text)
    return Place(line and line[1], int(line[2]) if line else None, key and key[1]) if line or key else None


def for_programs(wanted: bool) -> None:
    """Let mistakes be shown as JSON from now on, or as lines."""
    global _json
    _json = wanted


def tell(mistake: UserError) -> None:
    """Show a mistake on stderr: as lines or, with --json, as one object in one line."""
    if _json:
        put(scrub(json.dumps({"error": mistake.as_object()})))
    else:
        say(*mistake.lines())


def say_to_people(*lines: str) -> None:
    """Write lines to stderr that the JSON of a program repeats."""
    if not _json:
        say(*lines)


def answer(found: Mapping[str, Any]) -> None:
    """Print an answer to a program on stdout as JSON, which has null for a number that is not finite."""

    def finite(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, Mapping):
            return {key: finite(each) for key, each in value.items()}
        return [finite(each) for each in value] if isinstance(value, list | tuple) else value

    print(json.dumps(finite(found), indent=2))  # noqa: T201
