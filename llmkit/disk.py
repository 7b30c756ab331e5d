"""Ask the file system about a word that may be no path: too long, with a NUL in it, below a folder that is closed.

Path's own questions raise OSError or ValueError for such a word. Here the answer is no.
"""

import os

exists, is_file, is_dir = os.path.exists, os.path.isfile, os.path.isdir
