"""Models elsewhere: on the Hub, and in the files of other engines."""
