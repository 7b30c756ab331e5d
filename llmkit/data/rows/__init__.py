"""Rows: read from files and the Hub, with their labels, and as the examples of a task."""
