"""Talk to the user on stderr: lines without secrets, and the exceptions that are shown without a traceback."""

import os
import re
import sys
from contextlib import suppress
from pathlib import Path

from llmkit.terminal import laid_out, put

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

    Anything that looks like a token of the Hub is removed too. A URL may have lost a slash, as `Path` writes it.
    """
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


class UserError(Exception):
    """A mistake that the user can correct; the command line prints it and exits with code 2.

    `message` says in one line what is wrong and where (file, line, key, row), `hint` what to do about it; `details`
    has a line for each of several mistakes found at once.
    """

    def __init__(self, message: str, hint: str = "", details: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    def lines(self) -> list[str]:
        """Return what is shown of it."""
        hint = [f"hint: {self.hint}"] if self.hint else []
        return [f"error: {self.message}", *(f"  {detail}" for detail in self.details), *hint]

    def __str__(self) -> str:
        return "\n".join(self.lines())


class RunError(UserError):
    """A run that fails through no mistake of the user's; shown in the same way, with exit code 1."""
