"""Read the conversations of a file that a chat model is to answer, as `finetune` reads those to train on."""

from llmkit.data.rows import conversations
from llmkit.data.rows.cells import ABSENT, value_at
from llmkit.data.rows.faults import Tally
from llmkit.data.rows.reader import Unusable
from llmkit.data.rows.table import Rows
from llmkit.errors import UserError
from llmkit.inference import batch, generate
from llmkit.models.chat_template import ChatTemplate, Fitted
from llmkit.recipe.data_tables import ChatData
from llmkit.runs import finished

TEXT = "text"  # the column of the lines of a text file


class RowsToAnswer:
    """Reads rows with the columns and roles of the model's own run, and counts what was mended or not used."""

    def __init__(self, session: generate.GenerationSession, system_prompt: str | None) -> None:
        data: ChatData = finished.data_of(session.name, "chat")
        self.data = data.model_copy(update={"system_prompt": system_prompt or None, "companions": True})
        self.template = ChatTemplate(session.tokenizer)
        self.columns: dict[tuple[str, ...], dict[str, str]] = {}  # by the columns of a row
        self.places: set[str] = set()
        self.mended, self.unused = Tally(), Tally()

    def read(self, location: str, row: batch.Row) -> tuple[batch.Row, Fitted]:
        """Return the columns of a row that are read, and its conversation; raise UserError for one without."""
        try:
            columns = self._columns(location, row)
            found = conversations.conversation(row, columns, self.data, answered=False)
            fitted = self.template.fit(found)
        except Unusable as fault:
            raise UserError(f"{location}: {fault}", fault.hint) from fault
        if location not in self.places:  # a row is read again where it is answered
            self.places.add(location)
            for kind in filter(None, (found.mended, fitted.mended)):
                self.mended.add(kind, location)
            for part in fitted.unused:
                self.unused.add(f"{part}, which the chat template leaves out", location)
        values = {name: value_at(row, name) for name in columns.values()}
        return {"prompt" if n == TEXT else n: value for n, value in values.items() if value is not ABSENT}, fitted

    def notes(self) -> list[str]:
        """Say how many rows were mended, and read without something."""
        return [*self.mended.notes("mended"), *self.unused.notes("read without")]

    def _columns(self, location: str, row: batch.Row) -> dict[str, str]:
        """Choose the columns to read; a row without messages or a prompt may have a `text`."""
        names = tuple(name for name, value in row.items() if value is not None)
        if names not in self.columns:
            self.columns[names] = self._resolve(location, {name: row[name] for name in names})
        return self.columns[names]

    def _resolve(self, location: str, row: batch.Row) -> dict[str, str]:
        given = {key: getattr(self.data, key) for key in type(self.data).model_fields if key.endswith("_column")}
        gone = {key: None for key, name in given.items() if name is not None and value_at(row, name) is ABSENT}
        rows = Rows(lambda: iter([(location, row)]), tuple(row), {}, "", location)
        try:
            return conversations.resolve_columns(self.data.model_copy(update=gone), rows, labelled=False)
        except UserError:
            if isinstance(row.get(TEXT), str):
                return {"prompt": TEXT}
            raise
