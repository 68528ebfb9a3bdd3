"""Prints the licence of each package in vendor/.

python3 tools/licences.py                     of all
python3 tools/licences.py MIT Apache-2.0      exits 1 when one is not in this list
"""

import re
import sys
from pathlib import Path

wrong = False
for file in sorted(Path("vendor").glob("*/__init__.py")):
    (licence,) = re.findall(r'^__licence__ = "(.+)"$', file.read_text(), re.MULTILINE)
    wrong |= len(sys.argv) > 1 and licence not in sys.argv[1:]
    print(f"{file.parent.name}: {licence}")
sys.exit(wrong)
