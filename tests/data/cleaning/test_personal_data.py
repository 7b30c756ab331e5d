"""Personal data: found where it was planted, not where something only looks like it, and gone from the text."""

# ruff: noqa: RUF001  (full-width punctuation is what is tested)

import random
import sys
from collections import Counter

import pytest
from stdnum import iban, luhn

from llmkit.data.cleaning.personal_data import scrub
from llmkit.errors import UserError
from llmkit.recipe.cleaning import PERSONAL_DATA, Clean

ENGLISH = "Write to {} before noon, please.|My data: {}, as agreed|({})|Old: {}; new below.|See {}\nfor more."
CHINESE = "请联系{}，谢谢。|我的是{}。|（{}）|信息：{}；其他不变。"
PLACES = f"{ENGLISH}|{CHINESE}".split("|")


def digits(rng, number):
    return "".join(rng.choices("0123456789", k=number))


def wide(text):
    return "".join(chr(ord(each) + 0xFEE0) if "!" <= each <= "~" else each for each in text)


def email(rng):
    name = rng.choice(["anna.lee", "x", "info+news", "j_doe99", "zoë", "o'neil"])
    found = f"{name}@{rng.choice(['mail.example.co.uk', 'qq.com', 'uni-bonn.de', 'a.io', 'münchen.de'])}"
    return wide(found) if rng.random() < 0.1 and found.isascii() else found


def no_email(rng):
    return rng.choice(["icon@2x.png", "@someone", "user@host", "a @ b.com", "pkg@1.2.3", "x@y", "5 @ 3.50", "me@.com"])


def grouped(text, sizes, blank):
    pieces, start = [], 0
    for size in sizes:
        pieces.append(text[start : start + size])
        start += size
    return blank.join(piece for piece in pieces if piece)


def card(rng, valid=True):
    head, length = rng.choice(
        [
            ("4", 16),
            ("51", 16),
            ("2221", 16),
            ("34", 15),
            ("6011", 16),
            ("3528", 16),
            ("62", 19),
            ("300", 14),
            ("4", 13),
        ]
    )
    body = head + digits(rng, length - len(head) - 1)
    right = int(luhn.calc_check_digit(body))
    number = body + str(right if valid else (right + rng.randint(1, 9)) % 10)
    blank = rng.choice(["", " ", "-"])
    if length == 16:
        return grouped(number, (4, 4, 4, 4), blank)
    return grouped(number, (4, 6, 5), blank) if length == 15 else number


def no_card(rng):
    if rng.random() < 0.7:
        return card(rng, valid=False)
    body = rng.choice("179") + digits(rng, 14)  # no scheme begins so
    return body + luhn.calc_check_digit(body)


def account(rng, valid=True):
    country, body = rng.choice(
        [
            ("DE", digits(rng, 18)),
            ("GB", "WEST" + digits(rng, 14)),
            ("FR", None),
            ("NL", "ABNA" + digits(rng, 10)),
            ("AT", digits(rng, 16)),
        ]
    )
    number = f"{country}00{body}" if body else "FR1420041010050500013M02606"
    if body:
        number = f"{country}{iban.calc_check_digits(number)}{body}"
    if not valid:
        number = number[:2] + f"{(int(number[2:4]) + rng.randint(1, 90)) % 97:02}" + number[4:]
    return grouped(number, (4,) * 9, rng.choice(["", " "]))


def address(rng):
    if rng.random() < 0.3:
        return rng.choice(["2001:db8:85a3::8a2e:370:7334", "fe80::1ff:fe23:4567:890a", "2a02:2f0::17"])
    return ".".join([str(rng.choice([10, 84, 172, 192, 203])), *(str(rng.randint(10, 254)) for _ in range(3))])


def no_address(rng):
    four = ".".join(str(rng.randint(0, 9)) for _ in range(4))
    return rng.choice(
        [
            four,
            f"v10.{four[:5]}",
            "version 10.2.33.44",
            "版本 12.0.14.3",
            "255.255.255.0",
            "127.0.0.1",
            "999.12.13.14",
            "12:30:45",
            "std::abs",
            "a::b",
            "10.20.30",
            "1.22.33.44.55",
            "Section 12.10.11.12",
            "::1",
        ]
    )


def phone(rng):
    number = digits(rng, 4)
    return rng.choice(
        [
            f"(415) 555-{number}",
            f"212-736-{number}",
            f"+1 202 456 {number}",
            f"1381234{number}",
            wide(f"1381234{number}"),
            f"139-1234-{number}",
            f"+86 10 6234 {number}",
            f"010-6234{number}",
            f"+44 20 7946 {number}",
            f"+49 30 1234{number}",
        ]
    )


def no_phone(rng):
    year = rng.randint(1500, 1990)
    return rng.choice(
        [
            f"{year}-{year + 30}",
            f"({year}–{year + 9})",
            f"0.{digits(rng, 10)}",
            "2024-01-15 10:30",
            "1,234,567,890",
            "3.1415926535",
            "ISBN 978-3-16-148410-0",
            "20240115103000",
            "123-456",
            "12 345",
            "page 123-456-7890",
        ]
    )


PLANTED = {
    "email": (email, no_email),
    "iban": (account, lambda rng: account(rng, valid=False)),
    "card": (card, no_card),
    "ip": (address, no_address),
    "phone": (phone, no_phone),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_recall_and_precision_of_each_kind(kind):
    real, alike = PLANTED[kind]
    rng = random.Random(kind)
    step = scrub(Clean(personal_data=(kind,)))
    hits = misses = false = 0
    for _ in range(300):
        place, planted, near = rng.choice(PLACES), real(rng), alike(rng)
        masked = step(place.format(planted), Counter())
        hits += masked == place.format(f"<{kind.upper()}>")
        misses += masked != place.format(f"<{kind.upper()}>")
        false += step(place.format(near), Counter()) != place.format(near)
    assert hits / (hits + misses) >= 0.95
    assert hits / (hits + false) >= 0.95


def test_all_kinds_beside_each_other_keep_their_tags_and_are_counted():
    rng = random.Random(0)
    step = scrub(Clean(personal_data=PERSONAL_DATA))
    right = 0
    for _ in range(200):
        kinds = rng.sample(list(PLANTED), 5)
        template = " and ".join(f"the {kind}: {{}}" for kind in kinds) + "."
        count = Counter()
        masked = step(template.format(*(PLANTED[kind][0](rng) for kind in kinds)), count)
        right += masked == template.format(*(f"<{kind.upper()}>" for kind in kinds)) and count == dict.fromkeys(
            kinds, 1
        )
    assert right / 200 >= 0.95


def test_only_the_kinds_that_are_asked_for_are_masked_with_the_tag_of_the_recipe():
    text = "a@b.com, 203.0.113.77, +1 202 456 1111"
    assert scrub(Clean(personal_data=("ip",)))(text, Counter()) == "a@b.com, <IP>, +1 202 456 1111"
    tagged = scrub(Clean(personal_data=("email", "phone"), personal_data_tag="[{kind} removed]"))(text, Counter())
    assert tagged == "[EMAIL removed], 203.0.113.77, [PHONE removed]"
    assert scrub(Clean(personal_data=("email",), personal_data_tag="X"))(text, Counter()).startswith("X, ")


def test_numbers_without_a_country_code_belong_to_the_regions_that_are_named():
    text = "call 020 7946 0958 or 415-555-2671 or +86 138 1234 5678"
    expected = {
        ("GB",): "call <PHONE> or 415-555-2671 or <PHONE>",
        ("US",): "call 020 7946 0958 or <PHONE> or <PHONE>",
        (): "call 020 7946 0958 or 415-555-2671 or <PHONE>",
    }
    for regions, masked in expected.items():
        assert scrub(Clean(personal_data=("phone",), phone_regions=regions))(text, Counter()) == masked


def test_two_accounts_in_a_row_and_capitals_behind_one():
    step = scrub(Clean(personal_data=("iban",)))
    text = "GB82 WEST 1234 5698 7654 32 AND ALSO DE89370400440532013000 DE89 3704 0044 0532 0130 00 OK"
    assert step(text, Counter()) == "<IBAN> AND ALSO <IBAN> <IBAN> OK"


def test_presidio_is_asked_for_by_name_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(UserError, match="presidio-analyzer is not installed") as caught:
        scrub(Clean(presidio=True))
    assert caught.value.hint == "pip install 'llmkit[presidio]'"
