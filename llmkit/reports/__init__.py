"""Runs to look at: a page about one (`report.html`, `loss.svg`), tables and comparisons of several."""
