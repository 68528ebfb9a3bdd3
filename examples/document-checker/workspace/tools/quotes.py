"""Proves that a review quotes what is there: each item is "- FILE:LINE: `text`: remark", and the file says so.

python3 tools/quotes.py review.md
"""

import re
import sys
from pathlib import Path

ITEM = re.compile(r"- (\S+):(\d+): `([^`]+)`: \S.*")
wrong = []
items = [line for line in Path(sys.argv[1]).read_text().splitlines() if line.startswith("- ")]
for item in items:
    match = ITEM.fullmatch(item)
    if match is None:
        wrong.append(f"not a quotation: {item}")
        continue
    file, line, quoted = match[1], int(match[2]), match[3]
    lines = Path(file).read_text().splitlines() if Path(file).is_file() else []
    if not 0 < line <= len(lines) or quoted not in lines[line - 1]:
        wrong.append(f"{file} does not say {quoted!r} in line {line}")
print("\n".join(wrong) or f"{len(items)} quotations are right")
sys.exit(bool(wrong) or not items)
