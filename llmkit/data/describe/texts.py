"""Describe local running text: splits, documents and their lengths."""

from llmkit.data import files
from llmkit.data.describe.measure import word_counts
from llmkit.data.describe.sizes import kinds_and_size
from llmkit.data.display import Report
from llmkit.data.rows.table import default_validation
from llmkit.data.suggest import Suggestion
from llmkit.data.text import head
from llmkit.data.text.documents import read_corpus
from llmkit.data.text.findings import lines as text_columns
from llmkit.data.text.head import number_of
from llmkit.recipe.data_tables import TextData
from llmkit.recipe.schema import Recipe

DOCUMENTS = 20_000  # that are read
EXAMPLES = 3  # documents that are shown


def describe_texts(report: Report, recipe: Recipe, found: Suggestion, path: str, suggested: bool) -> None:
    """Describe the texts that `path` holds."""
    data = recipe.data
    assert isinstance(data, TextData)
    corpus = read_corpus(data.model_copy(update={"validation_fraction": None}), 0)
    paths = files.of_split(data, data.split) if default_validation(data) is None else []
    report.add("data", kinds_and_size(path, paths or files.expand(data.path)))
    because = f", because it has {found.because}" if found.because else ""
    report.add("task", f"{recipe.task}, which is pretraining{because}" if suggested else recipe.task)
    parts = {"train": corpus.train, **({} if corpus.validation is None else {"validation": corpus.validation})}
    read = {name: head.first(documents, DOCUMENTS) for name, documents in parts.items()}
    texts, _ = read["train"]
    notes = [note for note in corpus.notes if not note.startswith("no validation data")]
    found_in_text = [note for findings in corpus.findings for note in findings.notes]
    for note in dict.fromkeys([*notes, *found_in_text]):
        report.add("note", note)
    report.lines("columns", text_columns(corpus.findings))
    for name, (documents, partial) in read.items():
        report.add("" if name != "train" else "splits", f"{name}: {number_of(documents, partial)}")
    if corpus.validation is None:
        share = f"data.validation_fraction = {data.validation_fraction or 0:g}, of these documents"
        report.add("", f"validation: {share if data.validation_fraction else 'none'}")
    unit = {"document": "a file or row", "line": "a line or row", "paragraph": "a paragraph or row"}[data.sample_by]
    report.add("document", f"{unit} (data.sample_by = {data.sample_by})")
    if lengths := word_counts(iter([text]) for text in texts):
        report.add("lengths", lengths)
    if repeated := len(texts) - len(set(texts)):
        report.add("repeated", f"{repeated:,} of {len(texts):,} documents repeat an earlier one")
    for number, text in enumerate(texts[:EXAMPLES]):
        report.fit("" if number else "documents", text)
