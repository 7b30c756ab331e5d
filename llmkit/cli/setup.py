"""`llmkit doctor` and `completion`: what an installation needs."""

from typing import Annotated, Literal

import typer

from llmkit.cli import completion as completing
from llmkit.cli.app import SET_UP, Json, Offline, app, do, stay_offline
from llmkit.cli.style import Command


@app.command(
    cls=Command,
    rich_help_panel=SET_UP,
    epilog="""\
llmkit doctor --offline
llmkit doctor --measure""",
)
def doctor(
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Measure instead, in a few minutes, for which models this processor trains faster in bf16 than in "
            "fp32: new runs of those then do, unless their recipe says in which.",
        ),
    ] = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Check the installation, the machine and the Hub, and say what to do where something is wrong."""

    def act() -> int:
        stay_offline(offline)
        from llmkit import doctor

        return doctor.doctor(as_json, measure)

    do(act)


@app.command(
    cls=Command,
    rich_help_panel=SET_UP,
    epilog="""\
llmkit completion bash >> ~/.bashrc
llmkit completion zsh >> ~/.zshrc
llmkit completion fish > ~/.config/fish/completions/llmkit.fish""",
)
def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(metavar="bash|zsh|fish", help="The shell.")],
) -> None:
    """Print a script that completes commands, options, recipes, runs and keys in a shell."""

    def act() -> int:
        print(completing.SCRIPTS[shell], end="")  # noqa: T201
        completing.known()  # so that it is there when Tab is pressed first
        return 0

    do(act)
