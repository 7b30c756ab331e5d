"""Expand nested files into one row a question: SQuAD, CMRC and DRCD, C3 and RACE."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from llmkit.data.files.options import BadRow

Row = tuple[str, dict[str, Any] | BadRow]

SQUAD_HINT = "SQuAD's format is data > paragraphs > context, qas > id, question, answers > text, answer_start"
# CMRC 2018 (Cui et al. 2019, arXiv:1810.07366) has other names than SQuAD.
CONTEXT, QUESTION = ("context", "context_text"), ("question", "query_text", "query")
IDS = ("id", "query_id", "qid")
# The keys that are read of an article, of a paragraph and of a question.
ARTICLE, PARAGRAPH = ("title", "paragraphs"), ("title", "qas", *CONTEXT)
ANSWERED = ("answers", "answer", "answer_text", "answer_start")
QUESTIONED = (*IDS, *QUESTION, *CONTEXT, *ANSWERED, "title", "is_impossible")
RACE = ("article", "questions", "options", "answers", "question", "answer", "id")


class _MalformedError(ValueError):
    pass


def _member(value: Any, keys: tuple[str, ...], kind: type, expected: str) -> Any:
    key = next((key for key in keys if isinstance(value, dict) and key in value), None)
    if key is None or type(value[key]) is not kind:
        raise _MalformedError(f"`{key or keys[0]}` is {'missing' if key is None else f'not {expected}'}")
    return value[key]


def is_nested(row: Any) -> bool:
    """Tell whether an object is an article of SQuAD, or a paragraph of one, which stands for rows of its own."""
    if not isinstance(row, dict):
        return False
    inside = row.get("paragraphs")
    if isinstance(inside, list) and inside:
        return is_nested(inside[0])
    return isinstance(row.get("qas"), list) and any(key in row for key in CONTEXT)


def nested(row: dict[str, Any], place: str, number: int) -> Iterator[Row]:
    """Yield one row a question of an article or a paragraph, before which `number` questions stand."""
    article = "paragraphs" in row
    about = _others(row, ARTICLE) if article else {}
    for index, paragraph in enumerate(row["paragraphs"] if article else [row], 1):
        here = f"{place}, paragraph {index}" if article else place
        for each in _paragraph(paragraph, here, number, row.get("title"), about):
            number += 1
            yield each


def squad(articles: list[Any], file: Path) -> Iterator[Row]:
    """Yield one row a question, with the columns that SQuAD has on the Hub; without `answers` its row has none either.

    The format is that of https://rajpurkar.github.io/SQuAD-explorer/ in its versions 1.1 and 2.0.
    """
    number = 0
    for article_number, article in enumerate(articles, 1):
        place = f"article {article_number}"
        try:
            inside = _member(article, ("paragraphs",), list, "a list")
        except _MalformedError as problem:
            yield place, _bad(problem)
            continue
        for paragraph_number, paragraph in enumerate(inside, 1):
            here = f"{place}, paragraph {paragraph_number}"
            for row in _paragraph(paragraph, here, number, article.get("title", ""), _others(article, ARTICLE)):
                number += 1
                yield row


def paragraphs(items: list[Any]) -> Iterator[Row]:
    """Yield one row a question of paragraphs that stand in no articles, as those of CMRC 2018 do."""
    number = 0
    for index, paragraph in enumerate(items, 1):
        title = paragraph.get("title") if isinstance(paragraph, dict) else None
        for row in _paragraph(paragraph, f"item {index}", number, title, {}):
            number += 1
            yield row


def _paragraph(paragraph: Any, place: str, number: int, title: Any, about: dict[str, Any]) -> Iterator[Row]:
    """Yield the questions on a paragraph; `number` of questions stand before it.

    What else an article (`about`), a paragraph or a question has is a column too.
    """
    try:
        context = _member(paragraph, CONTEXT, str, "text")
        entries = _member(paragraph, ("qas",), list, "a list")
    except _MalformedError as problem:
        yield place, _bad(problem)
        return
    about = {**about, **_others(paragraph, PARAGRAPH)}
    for entry in entries:
        number += 1
        ids = (entry.get(key) for key in IDS) if isinstance(entry, dict) else iter(())
        name = str(next((each for each in ids if each not in (None, "")), number))
        try:
            question = _member(entry, QUESTION, str, "text")
            row = {"id": name, **({} if title is None else {"title": title}), "context": context, "question": question}
            row |= _answers(entry)
            yield (
                f"question {name}",
                {**row, **{key: v for key, v in about.items() if key not in row}, **_others(entry, QUESTIONED)},
            )
        except _MalformedError as problem:
            yield f"{place}, question {name}", _bad(problem)


def _others(value: dict[str, Any], read: Collection[str]) -> dict[str, Any]:
    """Return what a table has beside the keys that are `read`."""
    return {key: each for key, each in value.items() if key not in read}


def _answers(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the answers as SQuAD has them on the Hub; as a list of texts, where none has a place in the context."""
    if entry.get("is_impossible"):
        return {"answers": {"text": [], "answer_start": []}}
    if "answers" not in entry:
        return {key: entry[key] for key in ("answer", "answer_text", "answer_start") if key in entry}
    answers = _member(entry, ("answers",), list, "a list")
    if answers and all(isinstance(answer, str) for answer in answers):
        return {"answers": answers}
    texts = [_member(answer, ("text",), str, "text") for answer in answers]
    if answers and not any("answer_start" in answer for answer in answers):
        return {"answers": texts}
    starts = [_start(answer) for answer in answers]
    return {"answers": {"text": texts, "answer_start": starts}}


def _start(answer: dict[str, Any]) -> int:
    """Read where an answer begins, a number that may stand in quotes."""
    start = answer.get("answer_start")
    if isinstance(start, str) and start.strip().isdecimal():
        return int(start)
    return int(_member(answer, ("answer_start",), int, "a whole number"))


def _bad(problem: _MalformedError) -> BadRow:
    return BadRow(str(problem), SQUAD_HINT, "a question, or the part that holds it, is not in SQuAD's format")


def is_c3(items: list[Any]) -> bool:
    """Tell whether a list is one of C3 (Sun et al. 2020, arXiv:1904.09679): [[lines], [questions], id]."""
    first = items[0] if items else None
    return (
        isinstance(first, list)
        and len(first) >= 2
        and isinstance(first[0], list)
        and all(isinstance(line, str) for line in first[0])
        and isinstance(first[1], list)
        and bool(first[1])
        and all(isinstance(entry, dict) and "choice" in entry for entry in first[1])
    )


def c3(items: list[Any]) -> Iterator[Row]:
    """Yield one row a question of C3; the lines of a dialogue are one text."""
    for index, item in enumerate(items, 1):
        if not is_c3([item]):
            hint = "C3's format is [[lines], [{question, choice, answer}, ...], id]"
            yield f"item {index}", BadRow("not a list of lines, questions and an id", hint, "not C3's format")
            continue
        lines, entries, *rest = item
        name = rest[0] if rest else index
        for number, entry in enumerate(entries, 1):
            row = {"id": f"{name}-{number}", "context": "\n".join(lines)}
            yield f"item {index}, question {number}", row | entry


def is_race(content: Any) -> bool:
    """Tell whether an object is a file of RACE (Lai et al. 2017, arXiv:1704.04683): an article and its questions."""
    if not isinstance(content, dict) or not isinstance(content.get("article"), str):
        return False
    asked, options = content.get("questions"), content.get("options")
    return isinstance(asked, list) and isinstance(options, list) and all(isinstance(each, list) for each in options)


def race(content: dict[str, Any], place: str) -> Iterator[Row]:
    """Yield one row a question, with the columns that RACE has on the Hub (and `id`)."""
    answers = content.get("answers")
    asked, options = content["questions"], content["options"]
    lists = [asked, options, *([answers] if isinstance(answers, list) else [])]
    before = f"{place}, " if place else ""
    if len(set(map(len, lists))) > 1:
        message = f"{len(asked)} questions and {', '.join(str(len(each)) for each in lists[1:])} options or answers"
        yield f"{before}questions", BadRow(message, "each question needs options and an answer", "not RACE's format")
        return
    for number, (question, choices, *answer) in enumerate(zip(*lists, strict=True), 1):
        row = {"id": f"{content.get('id', '')}-{number}".lstrip("-"), "article": content["article"]}
        row |= {"question": question, "options": choices, **_others(content, RACE)}
        yield f"{before}question {number}", row | ({"answer": answer[0]} if answer else {})
