"""What counts as a word, in scripts with blanks and without; n-grams; lists of words."""

import numpy as np
import pytest

from llmkit.data import words
from llmkit.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat, didn't sit: 3.5 km!", ["The", "cat", "didn't", "sit", "3", "5", "km"]),
        ("naïve l\u2019été", ["naïve", "l\u2019été"]),
        ("我在 GPT2 学习。", ["我", "在", "GPT2", "学", "习"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("...!? 。，", []),
    ],
)
def test_words_are_runs_of_letters_or_single_characters_of_scripts_without_blanks(text, expected):
    assert words.words(text) == expected


def test_text_is_without_blanks_where_most_of_its_words_are():
    for text, expected in (("我在学习 GPT2", True), ("the word 学 here", False), ("plain text", False), ("", False)):
        assert words.without_blanks(text, len(words.words(text))) is expected


def test_ngrams_are_equal_where_the_words_are_and_differ_in_order_and_number():
    one = words.ngrams(words.hashes(["a", "b", "c", "a", "b", "c"]), 3)
    assert one.dtype == np.uint64
    assert one[0] == one[3]
    assert len(set(one.tolist())) == 3
    assert words.ngrams(words.hashes(["A", "B"]), 2)[0] == words.ngrams(words.hashes(["a", "b"]), 2)[0]
    assert words.ngrams(words.hashes(["a", "b"]), 2)[0] != words.ngrams(words.hashes(["b", "a"]), 2)[0]
    assert words.ngrams(words.hashes(["a", "b"]), 3).size == 0


def test_a_list_of_words_is_an_array_or_a_file_and_a_missing_file_is_named(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("one\n\n二\n", encoding="utf-8")
    assert words.word_list(str(file), "stop_words") == ("one", "二")
    assert words.word_list(("three",), "stop_words") == ("three",)
    with pytest.raises(UserError, match=r"data\.clean\.stop_words: `.*none\.txt` cannot be read"):
        words.word_list(str(tmp_path / "none.txt"), "stop_words")
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        words.word_list(str(file), "stop_words")
