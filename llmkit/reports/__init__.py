"""Reports on runs: a page about one, tables and comparisons of several."""
