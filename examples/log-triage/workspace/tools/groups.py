"""Groups the errors of logs/*.log: same file, and same text but for numbers.

python3 tools/groups.py        prints how many errors there are, and writes the groups to out/groups.json
"""

import json
import re
from collections import Counter
from pathlib import Path

LINE = re.compile(r"\S+ ERROR (.*)")


def groups():
    """[{"id", "file", "text", "count"}], the largest first."""
    found = Counter()
    for log in sorted(Path("logs").glob("*.log")):
        for line in log.read_text().splitlines():
            if match := LINE.fullmatch(line):
                found[log.name, re.sub(r"\d+", "N", match[1])] += 1
    return [
        {"id": f"E{number}", "file": file, "text": text, "count": count}
        for number, ((file, text), count) in enumerate(found.most_common(), 1)
    ]


if __name__ == "__main__":
    Path("out/groups.json").write_text(json.dumps(groups(), indent=1) + "\n")
    print(sum(group["count"] for group in groups()))
