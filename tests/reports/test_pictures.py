"""Pictures of a report: what they hold, and what nobody is told about drawing them."""

import warnings

from llmkit.reports import pictures


def test_chinese_stays_text_and_a_font_that_lacks_it_is_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = pictures.bars("lengths", "Lengths", "How long rows are.", [0, 1, 2], [3, 4], "好评 rows")
    assert "好评 rows" in drawn.svg
