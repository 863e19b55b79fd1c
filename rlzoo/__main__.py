"""`python -m rlzoo`."""

import os

from rlzoo.cli import main

os.environ.setdefault("PYTHONUNBUFFERED", "1")
main()
