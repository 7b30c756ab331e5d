"""Make the pictures of the README: run the commands in a terminal of 80 columns, and draw what they printed.

`make screens` calls it. The terminal becomes an SVG (by rich, which typer brings), the report a PNG (by chromium).
"""

import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
PICTURES = HERE / "pictures"
COLUMNS = 80
CHROMIUM = [
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
]


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    command = "llmkit finetune recipes/tiny/ending.toml"
    with tempfile.TemporaryDirectory(prefix="llmkit-screens-") as folder:
        (Path(folder) / "recipes").symlink_to(HERE.parent / "recipes")
        said = terminal(command, Path(folder))
        draw(f"$ {command}\n{said}", PICTURES / "first-run.svg")
        report = Path(folder) / "runs/ending/report.html"
        picture = PICTURES / "report.png"
        subprocess.run(
            [*CHROMIUM, "--window-size=1000,900", f"--screenshot={picture}", report.as_uri()],
            check=True,
            capture_output=True,
        )
    print("\n".join(str(path.relative_to(HERE.parent)) for path in sorted(PICTURES.iterdir())))


def terminal(command: str, folder: Path) -> str:
    """Return what a command prints to a terminal, with its colours; bars are left out, as they are on the screen."""
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"}
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("NO_COLOR", None)
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(folder)
        words = f"stty cols {COLUMNS} rows 40; exec {command}"
        os.execvpe("sh", ["sh", "-c", words], environment)
    parts = []
    while True:
        try:
            part = os.read(master, 65_536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        parts.append(part)
    _, status = os.waitpid(pid, 0)
    text = b"".join(parts).decode()
    if status:
        raise SystemExit(f"{command} failed:\n{text}")
    return "".join(f"{line}\n" for line in map(last_drawn, text.replace("\r\n", "\n").split("\n")) if shown(line))


def last_drawn(line: str) -> str:
    """Return what stands in a line at the end: a bar is drawn over itself."""
    return line.rpartition("\r")[2].replace("\x1b[K", "")


def shown(line: str) -> bool:
    return bool(re.sub(r"\x1b\[[0-9;]*m", "", last_drawn(line)).strip())


def draw(text: str, file: Path) -> None:
    """Draw a terminal's text as an SVG that needs nothing from outside."""
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115, PTH123
    console.print(Text.from_ansi(text))
    svg = console.export_svg(title="llmkit", unique_id="screen")
    svg = re.sub(r"@font-face \{.*?\}\n?", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!-- .*? -->\n?", "", svg)
    svg = svg.replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")
    file.write_text(svg)


if __name__ == "__main__":
    main()
