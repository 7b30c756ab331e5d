"""Read rows from files and the Hub, resolve their labels, and turn them into the examples of a task."""
