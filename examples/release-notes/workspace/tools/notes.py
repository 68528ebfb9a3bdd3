"""Proves a section of CHANGELOG.md against the history.

    python3 tools/notes.py VERSION SINCE

Each change since SINCE has its number in the section of VERSION, but for chores; no other number is there; what breaks
is said first, with the word "Breaking"; and the sections of earlier versions are as they were.
"""

import re
import subprocess
import sys
from pathlib import Path


def git(*words):
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout


def sections(text):
    """[(version, text)], in the order of the file."""
    return re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)


version, since = sys.argv[1:]
subjects = git("log", "--format=%s", f"{since}..HEAD").splitlines()
subjects = [s for s in subjects if s != f"Release {version}"]
wanted = {re.search(r"#\d+", s)[0]: s for s in subjects if not s.startswith("chore:")}
head, *earlier = sections(Path("CHANGELOG.md").read_text())
section = head[1] if head[0] == version else ""
told = re.findall(r"#\d+", section)
wrong = [f"{n} is missing: {wanted[n]}" for n in wanted if n not in told]
wrong += [f"{n} is no change since {since}, or a chore" for n in told if n not in wanted]
items = re.findall(r"^- .*", section, re.MULTILINE)
breaking = [n for n in wanted if wanted[n].startswith("BREAKING")]
if any("Breaking" in item for item in items) != bool(breaking):
    wrong.append(f"what breaks: {breaking}")
if breaking and items and not items[0].startswith("- Breaking"):
    wrong.append("what breaks comes first")
if earlier != sections(git("show", f"{since}:CHANGELOG.md")):
    wrong.append("the sections of earlier versions are not as they were")
print("\n".join(wrong) or f"{len(wanted)} changes, all told")
sys.exit(bool(wrong))
