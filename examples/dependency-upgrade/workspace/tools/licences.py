"""Prints the licence of each package in vendor/; exits 1 when one is not in the list that is given.

    python3 tools/licences.py MIT Apache-2.0
"""

import re
import sys
from pathlib import Path

wrong = False
for file in sorted(Path("vendor").glob("*/__init__.py")):
    (licence,) = re.findall(r'^__licence__ = "(.+)"$', file.read_text(), re.MULTILINE)
    wrong |= licence not in sys.argv[1:]
    print(f"{file.parent.name}: {licence}")
sys.exit(wrong)
