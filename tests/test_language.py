"""In what units texts are compared, and that figures equal those of the reference scorers on Chinese text."""

import random
import re
from itertools import pairwise

import nltk
import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from llmkit import language, metrics
from llmkit.language import WORDS, Units

CHINESE = Units("zh", True, False)
SENTENCES = (
    "昨天下午，老师带我们去了博物馆。",
    "他在1998年写了《故乡的河》，后来又写了三本小说。",
    "“你要去哪里？”她问。“去火车站！”",
    "这台Windows 10的电脑重2.5公斤，价格是4,999元。",
    "苹果公司（Apple Inc.）的总部在加利福尼亚州……",
    "下雨了；路很滑，请大家小心慢走！",
    "台灣的夜市有很多好吃的東西，例如「臭豆腐」、蚵仔煎。",
    "ご注文はうさぎですか是一部漫画",
)


def rows(seed: int = 0, number: int = 60) -> tuple[list[str], list[list[str]]]:
    """Predictions that are like their references, to a degree; one to three references of each."""
    draw = random.Random(seed)
    predictions, references = [], []
    for _ in range(number):
        right = [draw.choice(SENTENCES)[draw.randrange(4) :] for _ in range(draw.randint(1, 3))]
        text = draw.choice([*right, draw.choice(SENTENCES)])
        begin = draw.randrange(len(text))
        kept = text[begin : draw.randint(begin, len(text))]
        predictions.append(draw.choice([kept, text, text.replace("，", ""), kept + draw.choice(SENTENCES)]))
        references.append(right)
    return predictions, references


# ---- the choice ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "found", "characters"),
    [
        (["今天天气很好。"], "zh", True),
        (["臺灣的夜市"], "zh", True),
        (["Hello", "我们去公园散步吧，今天天气好"], "zh", True),  # of all texts together
        (["他用 PyTorch 训练了一个模型，效果很好，大家都很满意"], "zh", True),
        (["The word 猫 means cat, and 狗 means dog."], None, False),
        (["こんにちは世界"], "ja", True),
        (["東京都の人口は約一千四百万人"], "ja", True),  # more Chinese characters than kana
        (["ご注文はうさぎですか是一部日本漫画作品由这位作者创作在杂志上连载很多读者喜欢看它" * 2], "ja", True),
        (["动画の名字是这样写的所以大家都觉得很有意思并且记住了它"], "zh", True),  # a kana or two make no Japanese
        (["สวัสดีชาวโลก"], "th", True),
        (["ສະບາຍດີ"], "lo", True),
        (["안녕하세요 세계 여러분"], None, False),
        (["大韓民國 대한민국의 국호는 이렇게 씁니다"], None, False),
        (["Привет, мир"], None, False),
        (["12 + 30", "?!"], None, False),
        ([], None, False),
    ],
)
def test_most_letters_of_all_references_choose(texts, found, characters):
    units = language.choose(None, texts)
    assert (units.language, units.characters) == (found, characters)


@pytest.mark.parametrize(
    ("named", "characters"),
    [("zh", True), ("zh-CN", True), ("zh_Hant", True), ("ja", True), ("th", True), ("en", False), ("ko", False)],
)
def test_the_recipe_may_name_the_language(named, characters):
    for texts in (["今天天气很好。"], ["A fine day."]):
        units = language.choose(named, texts)
        assert (units.language, units.characters) == (named, characters)
        assert units.lines == [
            f"references: {language.UNSPACED[named[:2]][0] if characters else named}, scored by "
            f"{'characters' if characters else 'words'}"
        ]


# ---- the reference scorers -----------------------------------------------------------------------------------------


def test_bleu_of_chinese_is_sacrebleus_with_its_tokenizer_zh():
    predictions, references = rows()
    one = [texts[:1] for texts in references]
    expected = sacrebleu.corpus_bleu(predictions, [[texts[0] for texts in one]], tokenize="zh")
    assert metrics.bleu(predictions, one, CHINESE) == expected.score
    several = [[texts[min(i, len(texts) - 1)] for texts in references] for i in range(3)]
    expected = sacrebleu.corpus_bleu(predictions, several, tokenize="zh")
    assert metrics.bleu(predictions, references, CHINESE) == pytest.approx(expected.score)
    assert 10 < expected.score < 90


def f_measure(hits: int, predicted: int, actual: int) -> float:
    return 200 * hits / (predicted + actual) if hits else 0.0


def overlap(one: list, other: list) -> float:
    return f_measure(sum(min(one.count(each), other.count(each)) for each in set(one)), len(one), len(other))


def common_subsequence(one: str, other: str) -> int:
    longest = [0] * (len(other) + 1)
    for a in one:
        before = longest[:]
        for j, b in enumerate(other, 1):
            longest[j] = before[j - 1] + 1 if a == b else max(before[j], longest[j - 1])
    return longest[-1]


def test_rouge_of_chinese_compares_characters():
    predictions, references = rows()
    expected = {"rouge1": [], "rouge2": [], "rougeL": []}
    for prediction, texts in zip(predictions, references, strict=True):
        one, *others = (re.sub(r"\s", "", text.lower()) for text in (prediction, *texts))
        expected["rouge1"].append(max(overlap(list(one), list(text)) for text in others))
        expected["rouge2"].append(max(overlap([*pairwise(one)], [*pairwise(text)]) for text in others))
        expected["rougeL"].append(max(f_measure(common_subsequence(one, t), len(one), len(t)) for t in others))
    found = metrics.rouge(predictions, references, CHINESE)
    assert {kind: found[kind] for kind in expected} == pytest.approx({k: np.mean(v) for k, v in expected.items()})
    assert 10 < found["rouge2"] < found["rouge1"] < 90


def test_rouge_lsum_of_chinese_compares_sentence_by_sentence():
    class Characters:
        def tokenize(self, text):
            return [character for character in text.lower() if not character.isspace()]

    prediction, reference = "她问：“去哪里？”他说去车站！下雨了。", "下雨了。他说去车站！她问：“去哪里？”"
    lines = ["她问：“去哪里？”\n他说去车站！\n下雨了。", "下雨了。\n他说去车站！\n她问：“去哪里？”"]
    expected = RougeScorer(["rougeLsum"], tokenizer=Characters()).score(*lines)["rougeLsum"].fmeasure
    found = metrics.rouge([prediction], [[reference]], CHINESE)
    assert found["rougeLsum"] == pytest.approx(100 * expected) == pytest.approx(100)
    assert found["rougeL"] < 60


MARKS = set("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")  # of CMRC 2018's scorer


def segments(text: str) -> list[str]:
    found, other = [], ""
    for character in [c for c in text.lower().strip() if c not in MARKS] + ["\u4e00"]:
        if "\u4e00" <= character <= "\u9fa5":
            found += [*(nltk.word_tokenize(other, preserve_line=True) if other else []), character]
            other = ""
        else:
            other += character
    return found[:-1]


def common_run(one: list[str], other: list[str]) -> int:
    longest = 0
    for i in range(len(one)):
        for j in range(len(other)):
            size = 0
            while i + size < len(one) and j + size < len(other) and one[i + size] == other[j + size]:
                size += 1
            longest = max(longest, size)
    return longest


def test_answers_in_chinese_are_scored_by_the_rules_of_cmrc_2018():
    predictions, references = rows(1, 200)
    exact, f1 = [], []
    for prediction, answers in zip(predictions, references, strict=True):
        bare = ["".join(c for c in text.lower().strip() if c not in MARKS) for text in (prediction, *answers)]
        exact.append(100 * (bare[0] in bare[1:]))
        predicted = segments(prediction)
        actual = [segments(answer) for answer in answers]
        f1.append(max(f_measure(common_run(predicted, each), len(predicted), len(each)) for each in actual))
    found = metrics.squad(predictions, references, CHINESE)
    assert found == pytest.approx({"exact_match": np.mean(exact), "f1": np.mean(f1)})
    assert 10 < found["exact_match"] < found["f1"] < 90


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("1628年", ["于1628年"], 0, 4 / 5),
        ("《故乡的河》。", ["故乡的河"], 1, 1),
        ("故乡 的河", ["故乡的河"], 0, 1),  # the blank counts where all must be equal
        ("windows", ["Windows"], 1, 1),
        ("河的", ["的河"], 0, 1 / 2),  # what is in common stands in one piece
        ("好…", ["好"], 0, 2 / 3),  # a mark that the scorer does not leave out, though it lists it twice over
        ("。", ["《》"], 1, 0),  # as in the scorer, which finds nothing in common
        ("", ["故乡"], 0, 0),
        ("", [], 1, 1),
        ("故乡", [], 0, 0),
    ],
)
def test_an_answer_in_chinese(prediction, answers, exact, f1):
    assert metrics.cmrc_exact_match(prediction, answers) == exact
    assert metrics.cmrc_f1(prediction, answers) == pytest.approx(f1)


def test_questions_without_an_answer_have_their_own_figures_in_chinese_too():
    found = metrics.squad(["北京", "上海", ""], [["北京市"], [], []], CHINESE)
    assert found["HasAns_f1"] == pytest.approx(80)
    assert (found["HasAns_exact"], found["NoAns_exact"], found["NoAns_f1"]) == (0, 50, 50)


# ---- other languages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [("今日は晴れです", "今日は雨です"), ("วันนี้ฝนตก", "วันนี้แดดออก"), ("今天下雨", "今天下雪")],
)
def test_japanese_and_thai_are_scored_by_characters(prediction, reference):
    units = language.choose(None, [reference])
    assert metrics.rouge([prediction], [[reference]], units)["rouge1"] == pytest.approx(
        overlap(list(prediction), list(reference))
    )
    kind = "zh" if units.language == "zh" else "char"
    assert metrics.bleu([prediction], [[reference]], units) == pytest.approx(
        sacrebleu.corpus_bleu([prediction], [[reference]], tokenize=kind, force=True).score
    )
    run = common_run(list(prediction), list(reference))
    assert metrics.squad([prediction], [[reference]], units)["f1"] == pytest.approx(
        f_measure(run, len(prediction), len(reference))
    )
    assert metrics.squad([reference], [[reference]], units) == {"exact_match": 100, "f1": 100}


def test_korean_is_scored_by_blanks():
    prediction, reference = "나는 어제 학교에 갔다.", "나는 오늘 학교에 갔다."
    units = language.choose(None, [reference])
    figures = metrics.rouge([prediction], [[reference]], units)
    assert (figures["rouge1"], figures["rouge2"]) == (pytest.approx(75), pytest.approx(100 / 3))
    assert metrics.squad([prediction], [[reference]], units)["f1"] == pytest.approx(75)
    assert metrics.bleu([prediction], [[reference]], units) == sacrebleu.corpus_bleu([prediction], [[reference]]).score
    assert metrics.rouge([reference], [[reference]], units)["rougeLsum"] == pytest.approx(100)


def test_english_with_chinese_words_scores_as_before():
    """The figures of an earlier version, to the last digit."""
    predictions = [
        "The cat sat on the mat.",
        "He said 'No!' and left. Then 世界 was quiet.",
        "A the an.",
        "in the year 1998, U.S. Army",
        " gut für alle",
    ]
    references = [
        ["A cat was sitting on the mat."],
        ["He left. 世界 was quiet then.", "He said no and left."],
        ["the"],
        ["1998", "the U.S. army"],
        ["gut fur alle"],
    ]
    units = language.choose(None, (text for texts in references for text in texts))
    assert units == WORDS
    assert metrics.rouge(predictions, references, units) == {
        "rouge1": 63.666333666333664,
        "rouge2": 30.707070707070706,
        "rougeL": 63.666333666333664,
        "rougeLsum": 63.666333666333664,
    }
    assert metrics.bleu(predictions, references, units) == 25.632496394871502
    assert metrics.chrf(predictions, references) == 45.50590908517189
    assert metrics.squad(predictions, references, units) == {"exact_match": 20.0, "f1": 74.0952380952381}
