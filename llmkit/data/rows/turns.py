"""Put the turns of a conversation in order where that takes no guess: join, cut off, leave out."""

from __future__ import annotations

import re

from llmkit.data.rows.messages import Turn, unusable

JOINED = "two turns of one speaker joined by a blank line"
FIRST_LEFT_OUT = "a first turn of the assistant left out"
LAST_CUT_OFF = "an unanswered last turn cut off"
ANSWER_LEFT_OUT = "the last answer left out: the model is to write it"
# Each role by its first letter: the user and the assistant take turns, who may use tools before it answers.
_IN_TURNS = re.compile("s?d?(ua(t+a)*)+")
_ASKED = re.compile("s?d?(ua(t+a)*)*u|s?d?(ua(t+a)*)*uat+(at+)*")


def mend(turns: list[Turn], answered: bool) -> tuple[list[Turn], list[str]]:
    """Return the turns in order, and what was mended.

    A conversation that is `answered` ends with the assistant, as training needs it; else with the user or a tool.
    Raises Unusable where it takes a guess what is meant.
    """
    given = [turn.role for turn in turns]
    turns, mended = _join(turns)
    head = next((i for i, turn in enumerate(turns) if turn.role not in ("system", "developer")), len(turns))
    if [turn.role for turn in turns[head : head + 2]] == ["assistant", "user"]:
        del turns[head]
        mended.append(FIRST_LEFT_OUT)
    if answered:
        end = next((i for i in range(len(turns), 0, -1) if turns[i - 1].role == "assistant"), len(turns))
        if end < len(turns):
            del turns[end:]
            mended.append(LAST_CUT_OFF)
    elif turns and turns[-1].role == "assistant":
        del turns[-1]
        mended.append(ANSWER_LEFT_OUT)
    if not (_IN_TURNS if answered else _ASKED).fullmatch("".join(turn.role[0] for turn in turns)):
        shown = ", ".join(given[:6]) + (f" and {len(given) - 6} more" if len(given) > 6 else "")
        raise unusable("roles out of turn", f"the roles do not take turns: {shown}")
    return turns, mended


def _join(turns: list[Turn]) -> tuple[list[Turn], list[str]]:
    """Join neighbouring turns of one speaker; what several tools say stays apart."""
    found: list[Turn] = []
    joined = False
    for turn in turns:
        before = found[-1] if found else None
        if before is None or before.role != turn.role or turn.role == "tool":
            found.append(Turn(dict(turn.message), turn.learned, turn.mended))
            continue
        if before.learned != turn.learned:
            raise unusable(
                "two turns of the assistant in a row, one of them not to be learned",
                "two turns of the assistant follow one another, and one of them is not to be learned",
            )
        joined = True
        texts = [text for text in (before.message["content"], turn.message["content"]) if text.strip()]
        calls = [*before.message.get("tool_calls", ()), *turn.message.get("tool_calls", ())]
        before.message = {**before.message, **turn.message, "content": "\n\n".join(texts)}
        if calls:
            before.message["tool_calls"] = calls
    return found, [JOINED] if joined else []
