"""Compares vendor/ with the newest versions that index/latest.json knows.

python3 tools/outdated.py          prints, as JSON, what is outdated: [{"name", "old", "new"}]
python3 tools/outdated.py NAME     exits 1 if that package is outdated
"""

import json
import re
import sys
from pathlib import Path

latest = json.loads(Path("index/latest.json").read_text())
found = []
for name in sorted(latest):
    (old,) = re.findall(r'^__version__ = "(.+)"$', Path("vendor", name, "__init__.py").read_text(), re.MULTILINE)
    if old != latest[name]:
        found.append({"name": name, "old": old, "new": latest[name]})
if len(sys.argv) > 1:
    sys.exit(any(package["name"] == sys.argv[1] for package in found))
print(json.dumps(found))
