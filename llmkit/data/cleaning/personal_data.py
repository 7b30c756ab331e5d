"""Find personal data in running text, check it where that is possible, and mask it with a tag.

What is masked, and what is not:
- e-mail addresses, full-width ones too, but no names of image files such as `icon@2x.png`.
- IBANs whose country, length and check digits are right (ISO 13616), with or without blanks.
- Card numbers of a known scheme and length whose Luhn digit is right (ISO/IEC 7812), in one piece or in the groups that
  are printed on a card.
- IPv4 and IPv6 addresses of hosts. `1.2.3.4` may be a version or the number of a section: four single digits are taken
  for that, and so is what follows the word version, release, section or the like. Network masks, loopback and
  multicast addresses belong to nobody and are not masked.
- telephone numbers that are possible in their country's plan (phonenumbers), with a `+` code or of `phone_regions`.
Where two overlap, the one that comes first in this list is masked.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator

from llmkit.data.cleaning.repair import Step
from llmkit.errors import UserError
from llmkit.recipe.cleaning import PERSONAL_DATA, Clean

Span = tuple[int, int, str]  # from, to, kind
Finder = Callable[[str], Iterator[tuple[int, int]]]

# From full-width to ASCII, character by character, so that positions in the text stay the same.
_NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def scrub(table: Clean) -> Step:
    """Make the step that replaces personal data by `table.personal_data_tag`, and counts it by kind.

    Raises UserError where Presidio is asked for and is not installed.
    """
    if "phone" in table.personal_data:
        import phonenumbers

        unknown = sorted(set(table.phone_regions) - phonenumbers.SUPPORTED_REGIONS)
        if unknown:
            raise UserError(
                f"data.clean.phone_regions: unknown country code {', '.join(unknown)}",
                "use two-letter ISO country codes, such as GB, DE, US",
            )
    finder_of = {
        "email": _emails,
        "iban": _ibans,
        "card": _cards,
        "ip": _addresses,
        "phone": _phones(table.phone_regions),
    }
    finders: dict[str, Finder] = {kind: finder_of[kind] for kind in PERSONAL_DATA if kind in table.personal_data}
    presidio = _presidio(table.presidio_language) if table.presidio else None

    def find_all(narrow: str, text: str) -> Iterator[Span]:
        for kind, find in finders.items():
            yield from ((start, end, kind) for start, end in find(narrow))
        if presidio:
            yield from presidio(text)

    def step(text: str, count: Counter[str]) -> str:
        narrow = text if text.isascii() else text.translate(_NARROW)
        spans: list[Span] = []
        taken = bytearray(len(text))
        for start, end, kind in find_all(narrow, text):
            if not any(taken[start:end]):
                spans.append((start, end, kind))
                taken[start:end] = b"\1" * (end - start)
        parts, position = [], 0
        for start, end, kind in sorted(spans):
            count[kind] += 1
            parts += [text[position:start], table.personal_data_tag.replace("{kind}", kind.upper())]
            position = end
        return "".join([*parts, text[position:]])

    return step


# ---- e-mail --------------------------------------------------------------------------------------------------------

_NAME = r"A-Za-z0-9\u00c0-\u024f"
_EMAIL = re.compile(
    rf"(?<![{_NAME}._%+-])[{_NAME}](?:[{_NAME}._%+'-]{{0,62}}[{_NAME}_+-])?"
    rf"@(?:[{_NAME}](?:[{_NAME}-]{{0,61}}[{_NAME}])?\.){{1,8}}([A-Za-z]{{2,24}})(?![A-Za-z0-9_-])"
)
_FILES = frozenset("avif css gif jpeg jpg js pdf png svg webp".split())  # noqa: SIM905


def _emails(text: str) -> Iterator[tuple[int, int]]:
    if "@" in text:
        yield from (match.span() for match in _EMAIL.finditer(text) if match[1].lower() not in _FILES)


# ---- numbers with a check digit ------------------------------------------------------------------------------------

# Searched at every position, not only behind the last match: capitals that follow an IBAN may begin the next one.
_IBAN = re.compile(r"(?<![A-Za-z0-9])(?=([A-Z]{2}\d{2}(?:[ \u00a0-]?[A-Z0-9]){11,30}))")
_GROUP_END = re.compile(r"(?<=[A-Z0-9])(?![A-Za-z0-9])")


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the spans of IBANs; the country fixes the length, and capitals that follow are no part of one."""
    from stdnum import iban

    for match in _IBAN.finditer(text):
        start, end = match.span(1)
        for last in _GROUP_END.finditer(text, start + 15, end + 1):
            if last.end() <= end and iban.is_valid(text[start : last.end()].replace("\u00a0", " ")):
                yield start, last.end()


_CARD = re.compile(
    r"(?<![\w.,+-])(?:\d{13,19}|\d{4}([ \u00a0-])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{4}([ \u00a0-])\d{6}\2\d{4,5})"
    r"(?!\w|[.,-]\d)",
    re.ASCII,  # here and below: a Chinese character beside a number is no part of it
)
# The numbers of issuers and the lengths of their cards: ISO/IEC 7812 and the schemes' own pages.
_SCHEMES = re.compile(
    r"4\d{12}(?:\d{3}){0,2}"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|(?:6011\d\d|64[4-9]\d{3}|65\d{4})\d{10,13}"  # Discover
    r"|(?:30[0-5]|3095|36|3[89])\d{11,12}"  # Diners Club
    r"|35(?:2[89]|[3-8]\d)\d{12,15}"  # JCB
    r"|62\d{14,17}|81\d{14}"  # UnionPay
    r"|(?:5018|5020|5038|5893|6304|6759|676[123])\d{9,15}"  # Maestro
)


def _cards(text: str) -> Iterator[tuple[int, int]]:
    from stdnum import luhn

    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if _SCHEMES.fullmatch(digits) and luhn.is_valid(digits):
            yield match.span()


# ---- addresses of machines -----------------------------------------------------------------------------------------

_IPV4 = re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)", re.ASCII)
_IPV6 = re.compile(
    r"(?<![\w:.])(?=[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:)[0-9A-Fa-f:]{3,39}(?:(?<=:)\d{1,3}(?:\.\d{1,3}){3})?(?![\w:])",
    re.ASCII,
)
_VERSION = re.compile(
    r"(?:version|release|section|chapter|build|firmware|driver|ver|rev|sec|§|版本|版|章节|第)[\s.:\uff1a]*$",
    re.IGNORECASE,
)


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    for pattern, mark in ((_IPV4, "."), (_IPV6, ":")):
        for match in pattern.finditer(text) if mark in text else ():
            try:
                address = ipaddress.ip_address(match[0])
            except ValueError:
                continue
            if address.is_loopback or address.is_unspecified or address.is_multicast or address.is_reserved:
                continue
            before = text[max(0, match.start() - 16) : match.start()]
            if _looks_like_a_version(match[0]) or _VERSION.search(before):
                continue
            yield match.span()


def _looks_like_a_version(address: str) -> bool:
    """Tell whether it is four single digits or, for IPv6, a likely name in a program, such as `abc::def`."""
    return len(address) == 7 if "." in address else not any(map(str.isdigit, address))


# ---- telephone numbers ---------------------------------------------------------------------------------------------

_NO_NUMBERS = re.compile(  # no telephone numbers: decimals, spans of years, addresses of machines
    r"\W*(?:\d[.,]\d+|(?:1\d|20)\d\d\s?[-\u2010-\u2015~/]\s?(?:1\d|20)\d\d|\d{1,3}(?:\.\d{1,3}){3})\W*"
)
# Where phonenumbers may find a number: it is slow, and sees only these parts of a text, with some context.
_DIALLED = re.compile(r"[+(\[]{0,3}\d(?:[\s()\[\].,/~\u00a0\u2010-\u2015\u2212-]{0,4}(?:ext\.?|x|#)?\s?\d){6,19}")
_AROUND = 20
# Rows of figures, as in tables: phonenumbers would search them slowly and in vain.
_FIGURES = re.compile(r"(?:\d+[.,]\d+[\s;]+){2,}|(?:\d{1,2}\s+){6,}")


def _phones(regions: tuple[str, ...]) -> Finder:
    def find(text: str) -> Iterator[tuple[int, int]]:
        import phonenumbers

        for part in _DIALLED.finditer(text):
            if _FIGURES.match(part[0]):
                continue
            start = max(0, part.start() - _AROUND)
            spans = {
                (start + match.start, start + match.end)
                for region in regions or (None,)
                for match in phonenumbers.PhoneNumberMatcher(text[start : part.end() + _AROUND], region)
            }
            for begin, end in sorted(spans, key=lambda span: (span[0], -span[1])):
                if text[begin] in "([" and not {")", "]"}.intersection(text[begin:end]):
                    begin += 1
                inside = begin < part.end() and part.start() < end  # a number outside is whole in another part
                decimal = re.search(r"\d[.,]$", text[max(0, begin - 2) : begin])
                if inside and not decimal and _NO_NUMBERS.fullmatch(text[begin:end]) is None:
                    yield begin, end

    return find


# ---- more, by Presidio ---------------------------------------------------------------------------------------------


def _presidio(language: str) -> Callable[[str], Iterator[Span]]:
    """Make the finder of Microsoft Presidio with its default recognizers; not tested, for want of its models."""
    try:
        from presidio_analyzer import AnalyzerEngine
    except ImportError as problem:
        raise UserError(
            "data.clean.presidio: the package presidio-analyzer is not installed", "pip install 'llmkit[presidio]'"
        ) from problem
    engine = AnalyzerEngine(supported_languages=[language])

    def find(text: str) -> Iterator[Span]:
        results = engine.analyze(text=text, language=language)
        for result in sorted(results, key=lambda result: -result.score):
            yield result.start, result.end, result.entity_type

    return find
