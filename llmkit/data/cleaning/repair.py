"""Repair the text of a document: markup, wrong decoding, invisible characters, blanks, boilerplate, stop words.

A step takes a text and a counter, and returns the text. In the counter it notes what it did, by rule.
"""

import html as entities
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Literal

import regex

from llmkit.data.rows.augment import FUNCTION_WORDS
from llmkit.data.words import ALONE, any_of, word_list

Step = Callable[[str, Counter[str]], str | None]  # None: the document is dropped

# ---- HTML ----------------------------------------------------------------------------------------------------------

_PARAGRAPHS = "p h1 h2 h3 h4 h5 h6 blockquote pre table ul ol dl figure hr article section main"
_LINES = "div li tr dt dd figcaption caption address details summary br"
_INLINE = "a abbr b bdi bdo cite code del dfn em i img ins kbd mark q s samp small span strong sub sup td th u var font"
_DROPPED = "script style noscript template svg head iframe object canvas nav footer aside form button select textarea"
_KNOWN = "|".join(f"{_PARAGRAPHS} {_LINES} {_INLINE} {_DROPPED} html body header title meta link tbody thead".split())
_MARKUP = re.compile(rf"</?(?:{_KNOWN})(?:\s[^<>]*)?/?>|<!--|<!doctype", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,31});", re.IGNORECASE)
# Marks that survive the joining of blanks: around a paragraph, around a line, and for line ends and blanks in <pre>.
_PARAGRAPH, _LINE, _END, _BLANK = "\x01", "\x02", "\x03", "\x04"
_BREAK = re.compile(rf"[ {_END}{_PARAGRAPH}{_LINE}]*[{_PARAGRAPH}{_LINE}][ {_END}{_PARAGRAPH}{_LINE}]*")
_AS_BLANKS = str.maketrans({_END: "\n", _BLANK: " "})


def html(text: str, count: Counter[str]) -> str:
    """Reduce an HTML page, or a text with tags in it, to what a reader sees; without tags only replace entities.

    A text that begins with a tag is a page, in which a line end is a blank. In any other text line ends are kept.
    """
    if _MARKUP.search(text) is None:
        return _ENTITY.sub(lambda entity: entities.unescape(entity[0]), text)
    from selectolax.lexbor import LexborHTMLParser

    page = re.sub("[\x01-\x04]", "", text)
    if _MARKUP.match(page.lstrip()) is None:
        page = page.replace("\n", _END)
    body = LexborHTMLParser(page.encode("utf-8", "replace")).body
    if body is None:
        return ""
    for node in body.css(_DROPPED.replace(" ", ", ")):
        node.decompose()
    for node in body.css("pre"):
        for child in list(node.traverse(include_text=True)):
            if child.tag == "-text":
                child.replace_with(child.text(deep=False).strip("\n").replace("\n", _END).replace(" ", _BLANK))
    for tags, mark in ((_PARAGRAPHS, _PARAGRAPH), (_LINES, _LINE), ("td th", " ")):
        for node in body.css(tags.replace(" ", ", ")):
            node.insert_before(mark)
            node.insert_after(mark)
    joined = re.sub(r"[ \t\r\n\f]+", " ", body.text())
    return _BREAK.sub(_line_ends, joined).translate(_AS_BLANKS).strip("\n ")


def _line_ends(match: re.Match[str]) -> str:
    return "\n\n" if _PARAGRAPH in match[0] or match[0].count(_END) > 1 else "\n"


# ---- characters ----------------------------------------------------------------------------------------------------


def repair(text: str, count: Counter[str]) -> str:
    """Decode text again that was decoded with the wrong table (ftfy); change nothing else.

    Full-width punctuation, curly quotes and ligatures are no mistakes and stay.
    """
    if text.isascii():
        return text
    from ftfy import TextFixerConfig, fix_text

    only_decoding = TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        remove_control_chars=False,
        normalization=None,
        explain=False,
    )
    return str(fix_text(text, only_decoding))


def normal_form(form: Literal["NFC", "NFKC"]) -> Step:
    """Make the step that brings a text into a Unicode normal form (Unicode Standard Annex 15)."""
    return lambda text, count: text if unicodedata.is_normalized(form, text) else unicodedata.normalize(form, text)


# Of the format characters (Cf) those that shape words stay: the joiners of Persian, Hindi and emoji, and the signs that
# enclose Arabic numbers. Line ends are left to `whitespace`.
_TERMINAL = r"\x1b\[[0-9;?]*[ -/]*[@-~]"
_UNSEEN = regex.compile(
    rf"(?V1){_TERMINAL}|[[\p{{Cc}}\p{{Co}}\p{{Cn}}\p{{Cs}}\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffd"
    r"\U000e0001-\U000e007f]--[\t\n\v\f\r\x85]]"
)


def control_characters(text: str, count: Counter[str]) -> str:
    """Remove what nobody sees: control, zero-width, direction, private, unassigned, U+FFFD, and terminal colours."""
    return text if text.isascii() and text.isprintable() else str(_UNSEEN.sub("", text))


_LINE_ENDS = re.compile("\r\n?|[\v\f\x85\u2028\u2029]")


def whitespace(text: str, count: Counter[str]) -> str:
    """Make line ends `\\n` and other blanks spaces; keep one space and two line ends at a time, and none at an edge."""
    joined = "\n".join(" ".join(line.split()) for line in _LINE_ENDS.sub("\n", text).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", joined).strip()


# ---- lines and words -----------------------------------------------------------------------------------------------

_ALONE = (  # boilerplate even if it is all of a line
    r"menu|log ?in|sign[ -]?in|sign[ -]?up|register|site ?map|privacy policy|terms of (?:use|service)|about us|"
    r"contact us|"
    r"首页|关于我们|联系我们|登录|注册|网站地图|返回首页|设为首页|加入收藏"
)
_ITEM = (
    rf"{_ALONE}|home|about|contact|blog|news|search|faqs?|help|products|services|privacy|terms|cart|shop|careers|support|"
    r"主页|新闻|产品|服务|帮助|搜索"
)
_WEBSITE = r"facebook|twitter|linkedin|pinterest|whatsapp|reddit|instagram|e-?mail"
# Patterns for whole lines: each must cover the line up to blanks, so that a sentence about cookies stays.
_BOILERPLATE = (
    rf"(?:{_ALONE})|(?:{_ITEM})(?:\s*(?:[|/·•»\u203a>]|\s)\s*(?:{_ITEM}))+",
    rf"(?:share|follow|like|find)(?: (?:this|us|it))?(?: (?:on|via|to|with|by))?(?:[\s,|/]*(?:{_WEBSITE}|tweet))+",
    r"(?:click|tap) (?:here|to)[^.!?]{0,60}",
    r"(?:read|show|view|see|load|learn) (?:more|all|full (?:article|story))\W*",
    r"(?:skip|jump|back) to (?:main )?(?:content|navigation|top|search)\W*",
    r"(?:please )?(?:subscribe|sign up)(?: (?:now|today))?(?: (?:to|for) .{0,60})?[.!]?",
    r"(?:log ?in|sign in|register) (?:to|or) .{0,60}",
    r"(?:next|previous|older|newer) (?:page|posts?|article|entry)\W*",
    r".{0,80}\ball rights reserved\b.{0,80}",
    r"(?:copyright\b|©|\(c\))\s*(?:copyright|©|\(c\))?\s*\d{4}.{0,80}",
    r"(?:this|our|the) (?:web ?)?(?:site|page) uses cookies.{0,300}",
    r"(?:by (?:using|continuing)|we use cookies).{0,120}\bcookies?\b.{0,200}|we use cookies (?:to|and|on|for) .{0,300}",
    r"accept (?:all )?cookies|(?:cookie|privacy) (?:policy|settings|notice)|terms (?:of|and) (?:use|service)",
    r"(?:please )?enable javascript.{0,120}|.{0,80}javascript (?:is disabled|must be enabled).{0,80}",
    r"advertisements?|sponsored(?: content)?|leave a (?:reply|comment)|\d+ comments?|posted (?:by|on|in) [^.!?]{0,60}",
    r"版权所有.{0,60}|.{0,60}(?:版权所有|保留所有权利|未经授权.{0,10}(?:不得|禁止|请勿)转载).{0,30}",
    r".{0,20}ICP[备证]\s*\d+号.{0,30}|.{0,10}公网安备.{0,40}",
    r"[上下]一[篇页](?:[:\uff1a].{0,60})?|返回(?:首页|顶部|列表)|回到顶部|点击(?:这里|此处|查看|下载).{0,30}",
    r"(?:分享(?:到|至)|关注我们|扫一扫|扫描二维码).{0,40}|(?:责任编辑|编辑|来源|作者)[:\uff1a].{0,30}",
    r"(?:相关(?:阅读|文章|推荐)|热门推荐)[:\uff1a]?",
    r"(?:本(?:网)?站|我们)使用\s*cookie.{0,120}|(?:阅读|查看)(?:全文|更多|原文)\W*|广告",
)
_LONGEST = 400  # characters: a longer line is text


def boilerplate(frame: bool, patterns: tuple[str, ...]) -> Step:
    """Make the step that drops lines: with `frame` those around a page's text, and those in which a pattern matches."""
    of_frame = re.compile(rf"\W{{0,3}}(?:{'|'.join(_BOILERPLATE)})\W{{0,3}}", re.IGNORECASE)
    compiled = [re.compile(pattern) for pattern in patterns]

    def step(text: str, count: Counter[str]) -> str:
        kept = []
        lines = text.split("\n")
        for line in lines:
            bare = line.strip()
            if frame and len(bare) <= _LONGEST and bare and of_frame.fullmatch(bare):
                continue
            if any(pattern.search(line) for pattern in compiled):
                continue
            kept.append(line)
        count["lines"] += len(lines) - len(kept)
        return "\n".join(kept).strip("\n") if len(kept) < len(lines) else text

    return step


# Particles, pronouns and conjunctions, without characters that are often a part of other words (地, 过, 不).
_CHINESE = (
    "的 了 吗 呢 吧 啊 呀 嘛 是 在 和 与 就 都 而 也 很 我 你 他 她 它 我们 你们 他们 她们 它们 这个 那个 这些 那些 "
    "一个 因为 所以 但是 如果 以及 或者 并且 而且"
)
_BEFORE_WORD = re.compile(r"((?<![^\S\n])[^\S\n]+)?(?<![\w'\u2019])([\w'\u2019]+)")


def stop_words(given: str | tuple[str, ...]) -> Step:
    """Make the step that removes words: those of our lists "en" and "zh", of a file, or of an array.

    Chinese has no blanks to tell a word from a part of one: 的 is removed from 目的 too.
    """
    ours = {"en": tuple(FUNCTION_WORDS), "zh": tuple(_CHINESE.split())}
    listed = ours[given] if isinstance(given, str) and given in ours else word_list(given, "stop_words")
    alone = any_of(tuple(word for word in listed if ALONE.match(word)))
    whole = frozenset(word.lower() for word in listed)

    def keep(match: re.Match[str]) -> str:
        return "" if match[2].lower() in whole else match[0]

    def step(text: str, count: Counter[str]) -> str:
        without = _BEFORE_WORD.sub(keep, text)
        if without != text:
            without = re.sub("(?m)^ ", "", without)  # the blank behind a word that began its line
        return str(regex.sub(alone, "", without)) if alone else without

    return step
