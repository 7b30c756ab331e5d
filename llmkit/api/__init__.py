"""llmkit from Python: what the commands do, as functions that return what was made.

Each works in this process and leaves it as it was: environment, signal handlers, threads, random state, warnings. What
the commands say goes to stderr. A mistake is a `UserError` with the words that the command would print.
"""
