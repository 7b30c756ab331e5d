"""Write `report.html` and `loss.svg` of a run, from what its directory holds."""

from pathlib import Path

from llmkit.errors import UserError, say
from llmkit.reports.contents import Contents
from llmkit.reports.page import render
from llmkit.reports.pictures import Picture
from llmkit.runs import directory as runs

LARGEST = 1_000_000  # bytes of a report


def write_behind(directory: Path) -> None:
    """Write the report of a run that has just finished; a failure is said in one line and costs nothing else."""
    try:
        say(f"report   {write(directory)}")
    except (Exception, KeyboardInterrupt) as problem:  # a full disk, odd data, Ctrl-C: the run is finished all the same
        why = " ".join(f"{type(problem).__name__}: {problem}".split())
        say(f"warning  the report could not be written, and the run is finished all the same: {why}")


def write(directory: Path, explained: bool = False) -> Path:
    """Write `report.html` and `loss.svg` into a run directory, and show the picture in its model card.

    `explained`: mark the words that decided in each of the worst mistakes, which takes the model some seconds a row.
    Raises UserError for a folder that is no run.
    """
    if not runs.is_run(directory):
        raise UserError(
            f"`{directory}` is not a run directory: it has no {runs.RECORD_FILE}", "name one, such as runs/NAME"
        )
    contents = Contents.of(directory)
    if explained:
        contents.explain()
    picture = contents.loss_picture()
    page = render(contents, picture)
    if len(page.encode()) > LARGEST:  # long texts: without them
        contents.without_texts()
        page = render(contents, picture)
    if picture is not None:
        runs.write_text(directory / runs.LOSS_PICTURE, picture.alone())
        _show_in_card(directory, picture)
    runs.write_text(directory / runs.REPORT_FILE, page)  # last: where it is, all is
    return directory / runs.REPORT_FILE


def _show_in_card(directory: Path, picture: Picture) -> None:
    """Put the picture of the loss behind the table of the model card, once."""
    card = directory / runs.CARD_FILE
    text = card.read_text() if card.is_file() else ""
    table, code = "| metric | value |", "\n```python\n"
    if table in text and code in text and runs.LOSS_PICTURE not in text:
        shown = picture.description.replace("]", "").replace("[", "")
        runs.write_text(card, text.replace(code, f"\n![{shown}]({runs.LOSS_PICTURE})\n{code}", 1))
