"""Finds what is wrong in pages of documentation: links, examples, and defaults in tables.

python3 tools/pages.py '["docs/a.md", "docs/b.md"]'    prints, as JSON, the pages with problems, and exits 0
python3 tools/pages.py docs/a.md                       prints the problems of one page; exits 1 if there are any
"""

import doctest
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, "src")
from fetch.settings import DEFAULTS


def problems(page):
    """One line for each problem."""
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        if not (page.parent / target).exists():
            yield f"the link {target} leads nowhere"
    test = doctest.DocTestParser().get_doctest(text, {}, str(page), str(page), 0)
    told = []
    if doctest.DocTestRunner(verbose=False).run(test, out=told.append).failed:
        got = "".join(told).partition("Got:")[2].split()
        yield f"an example gives {' '.join(got)}"
    for name, default in re.findall(r"^\| (\w+) \| (\S+) \|", text, re.MULTILINE):
        if name in DEFAULTS and default != str(DEFAULTS[name]):
            yield f"the default of {name} is {DEFAULTS[name]}, not {default}"


if sys.argv[1].startswith("["):
    found = {page: list(problems(Path(page))) for page in json.loads(sys.argv[1])}
    print(json.dumps([{"page": page, "problems": lines} for page, lines in found.items() if lines]))
else:
    lines = list(problems(Path(sys.argv[1])))
    print("\n".join(lines))
    sys.exit(bool(lines))
