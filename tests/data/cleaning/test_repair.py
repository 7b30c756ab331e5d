"""What changes a text: each step mends what was planted and leaves alone what only looks like it."""

# ruff: noqa: RUF001  (full-width punctuation is what is tested)

import random
import unicodedata
from collections import Counter

import ftfy  # noqa: F401  (brings the codec sloppy-windows-1252)
import pytest

from llmkit.data.cleaning import repair

_ENGLISH = "the river old stone bridge town market bread early morning people sell fish talk weather long winter"
ENGLISH = _ENGLISH.split()
FRENCH = ["café", "été", "naïve", "garçon", "déjà", "forêt", "élève", "où", "âme", "cœur"]
CHINESE = "今天天气很好我们一起去公园散步看见许多孩子在湖边唱歌跳舞老人坐着下棋聊天"


def sentences(rng, number=4, vocabulary=ENGLISH):
    return " ".join(" ".join(rng.choices(vocabulary, k=8)).capitalize() + "." for _ in range(number))


def done(step, text):
    return step(text, Counter())


# ---- HTML ----------------------------------------------------------------------------------------------------------


def test_planted_pages_become_their_text_and_texts_with_angle_brackets_stay():
    rng = random.Random(0)
    right = 0
    for number in range(100):
        one, two = sentences(rng), rng.choice([sentences(rng), "".join(rng.choices(CHINESE, k=30)) + "。"])
        page = (
            f"<!DOCTYPE html><html><head><title>{number}</title><style>p {{ color: red }}</style></head>\n<body>"
            f"<nav><ul><li><a href='/'>Home</a></li></ul></nav><p>{one.replace('the', '<b>the</b>')}</p>\n"
            f"<script>var x = '<p>no</p>';</script><!-- hidden --><p>{two} &amp; more</p><footer>2020</footer></body>"
        )
        right += done(repair.html, page) == f"{one}\n\n{two} & more"
    assert right == 100
    for number in range(100):
        plain = f"{sentences(rng)} If a < b and c > {number}, x <- y; List<String> <3 & R&D."
        assert done(repair.html, plain) == plain


def test_lines_cells_and_code_keep_their_shape():
    assert done(repair.html, "<p>a<br>b</p><ul><li>c</li><li>d</li></ul>") == "a\nb\n\nc\nd"
    assert done(repair.html, "<table><tr><td>1</td><td>2</td></tr><tr><td>3</td></tr></table>") == "1 2\n3"
    code = "def f():\n    return 1\n\nf()"
    assert done(repair.html, f"<p>See\nthis:</p><pre>{code}</pre><p>end</p>") == f"See this:\n\n{code}\n\nend"


def test_line_ends_are_blanks_in_a_page_and_stay_in_a_text_with_tags_in_it():
    assert done(repair.html, "<p>one\ntwo</p>") == "one two"
    assert done(repair.html, "one\ntwo <b>bold</b>\n\nthree") == "one\ntwo bold\n\nthree"


def test_entities_are_replaced_without_tags_too_but_only_whole_ones():
    assert done(repair.html, "AT&amp;T &#20013;&nbsp;x &copy=1 &unknown;") == "AT&T 中\xa0x &copy=1 &unknown;"


def test_half_a_surrogate_pair_does_not_stop_the_parser():
    assert done(repair.html, "<p>a\ud800b</p>") == "a?b"


# ---- characters ----------------------------------------------------------------------------------------------------


def test_planted_mojibake_is_mended_and_right_text_is_left_alone():
    rng = random.Random(1)
    mended = 0
    for _ in range(200):
        text = sentences(rng, 3, ENGLISH + FRENCH)
        wrong = text.encode().decode("latin-1" if rng.random() < 0.5 else "sloppy-windows-1252")
        mended += done(repair.repair, wrong) == text
        assert done(repair.repair, text) == text
        chinese = "".join(rng.choices(CHINESE, k=40)) + "，“好”！ＡＢＣ？"
        mended += done(repair.repair, chinese.encode().decode("sloppy-windows-1252")) == chinese
        assert done(repair.repair, chinese) == chinese
    assert mended / 400 >= 0.95


def test_normal_forms_compose_and_only_nfkc_makes_full_width_narrow():
    apart = unicodedata.normalize("NFD", "Ångström café 각")
    assert apart != "Ångström café 각"
    assert done(repair.normal_form("NFC"), apart) == "Ångström café 각"
    assert done(repair.normal_form("NFC"), "ＡＢ，ﬁ") == "ＡＢ，ﬁ"
    assert done(repair.normal_form("NFKC"), "ＡＢ，ﬁ") == "AB,fi"


UNSEEN = "\x00\x07\x1b\x7f\x9d\u00ad\u200b\u200e\u202e\u2066\ufeff\ue000\ufffd\ufffe\U000e0041"


@pytest.mark.parametrize("character", UNSEEN)
def test_characters_that_nobody_sees_go(character):
    assert done(repair.control_characters, f"vor{character}her 中{character}文") == "vorher 中文"


def test_colours_of_a_terminal_go_and_what_shapes_text_stays():
    assert done(repair.control_characters, "a\x1b[31;1mred\x1b[0m") == "ared"
    kept = "tab\there\r\n👩\u200d👩\u200d👧 می\u200cخواهم ❤\ufe0f नमस्ते 각 \u3000，。"
    assert done(repair.control_characters, kept) == kept
    assert done(repair.control_characters, "half \ud83d pair") == "half  pair"


def test_blanks_and_line_ends_become_of_one_kind():
    found = done(repair.whitespace, "\u3000 a\t b\u00a0 c \r\n\r\n \n\n d\u2028e\x0bf\r")
    assert found == "a b c\n\nd\ne\nf"
    rng = random.Random(2)
    for _ in range(100):
        clean = sentences(rng) + "\n\n" + sentences(rng)
        assert done(repair.whitespace, clean) == clean
        dirty = clean.replace(" ", rng.choice(["  ", "\t", "\u00a0", " \u3000"])).replace("\n\n", " \r\n \r\n\r\n")
        assert done(repair.whitespace, dirty) == clean


# ---- lines and words -----------------------------------------------------------------------------------------------

FRAME = [
    *(
        "Home | About Us | Contact",
        "Skip to main content",
        "Share on Facebook Twitter",
        "© 2021 Example Ltd.",
        "Log in",
    ),
    *(
        "This website uses cookies to improve your experience.",
        "Read more »",
        "Click here to subscribe",
        "Advertisement",
    ),
    *("Copyright 2019 The Company. All rights reserved.", "Subscribe to our newsletter", "Please enable JavaScript"),
    *(
        "版权所有 © 2020 某某公司",
        "上一篇：春天来了",
        "返回首页",
        "京ICP备12345678号",
        "责任编辑：张三",
        "分享到：微信 微博",
    ),
    *("首页 | 新闻 | 产品", "点击这里下载", "相关阅读", "Next page", "Leave a reply", "Terms of Use"),
]
TEXT = [
    *(
        "The copyright of the book belongs to her heirs.",
        "He baked cookies and went home.",
        "News travelled slowly then.",
    ),
    *(
        "Help!",
        "Share your bread with the hungry.",
        "About a hundred people stood there.",
        "作者写了三本书。",
        "我回首页码的事。",
    ),
    *("Read more books and you will learn more words.", "Contact with the enemy was lost.", "Next, we fold the paper."),
    *(
        "编辑部在三楼。",
        "Follow me!",
        "The search went on for days.",
        "Copyright is a right.",
        "1. Services of the church",
    ),
]


def test_lines_of_a_frame_go_and_lines_of_text_stay():
    step = repair.boilerplate(True, ())
    rng = random.Random(3)
    planted = kept = 0
    for _ in range(200):
        lines = [(line, True) for line in rng.sample(FRAME, 3)] + [(line, False) for line in rng.sample(TEXT, 3)]
        lines += [(sentences(rng, 2), False)]
        rng.shuffle(lines)
        count = Counter()
        left = step("\n".join(line for line, _ in lines), count).split("\n")
        planted += count["lines"]
        kept += left == [line for line, frame in lines if not frame]
    assert planted == 600
    assert kept == 200


def test_patterns_of_the_user_drop_lines_alone_or_beside_the_known_ones():
    text = "Menu\nkeep this\nPage 3 of 9\n"
    assert done(repair.boilerplate(False, (r"^Page \d+",)), text) == "Menu\nkeep this"
    assert done(repair.boilerplate(True, (r"^Page \d+",)), text) == "keep this"
    assert done(repair.boilerplate(True, ()), "\n  text \n\n") == "\n  text \n\n"


def test_stop_words_go_with_one_blank_each():
    english = repair.stop_words("en")
    assert done(english, "The cat is on the mat.\nIt was there, the dog said.") == "cat mat.\n, dog said."
    assert done(english, "Theatre, isle and canyon; don't.") == "Theatre, isle canyon; don't."
    assert done(repair.stop_words("zh"), "我们的房子是新的，他们在家。") == "房子新，家。"
    assert done(repair.stop_words(("Foo", "猫")), "foo bar FOO 猫狗") == "bar 狗"


def test_stop_words_come_from_a_file(tmp_path):
    (tmp_path / "stop.txt").write_text("bar\n", encoding="utf-8")
    assert done(repair.stop_words(str(tmp_path / "stop.txt")), "foo bar baz") == "foo baz"
