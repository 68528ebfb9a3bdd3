"""Proves out/triage.csv: each group of errors stands in it once, with the count that the logs give, and a severity.

python3 tools/judge.py
"""

import csv
import sys
from pathlib import Path

from groups import groups

wrong = []
with Path("out/triage.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
wanted = {group["id"]: str(group["count"]) for group in groups()}
if sorted(row["id"] for row in rows) != sorted(wanted):
    wrong.append(f"ids are {[row['id'] for row in rows]}; the groups are {sorted(wanted)}")
for row in rows:
    if row["count"] != wanted.get(row["id"]):
        wrong.append(f"{row['id']}: {row['count']} errors; the logs have {wanted.get(row['id'])}")
    if row["severity"] not in ("page", "ticket", "ignore"):
        wrong.append(f"{row['id']}: severity {row['severity']!r} is not in runbook.md")
    if len(row["reason"].split()) < 3:
        wrong.append(f"{row['id']}: no reason")
print("\n".join(wrong) or f"{len(rows)} groups, all judged")
sys.exit(bool(wrong))
