"""The rules of data/rules.md, as far as a table can be held to them.

python3 tools/rules.py profile FILE    prints, as JSON, how many rows there are and how many break a rule
python3 tools/rules.py prove FILE      exits 1 unless out/members.csv and out/rejected.csv keep to all rules
"""

import csv
import json
import re
import sys
from datetime import date
from pathlib import Path


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def broken(row):
    """The rules that a row breaks by itself."""
    if row["name"] != " ".join(row["name"].split()):
        yield f"name {row['name']!r}"
    if not re.fullmatch(r"[a-z0-9._-]+@[a-z0-9-]+(\.[a-z0-9-]+)+", row["email"]):
        yield f"email {row['email']!r}"
    try:
        if date.fromisoformat(row["joined"]).isoformat() != row["joined"]:
            raise ValueError
    except ValueError:
        yield f"joined {row['joined']!r}"


def earliest(table):
    """Of each address the id that joined first, by what the raw table says."""
    first = {}
    for row in table:
        day = re.sub(r"(\d\d)\.(\d\d)\.(\d{4})", r"\3-\2-\1", row["joined"]).replace("/", "-")
        first.setdefault(row["email"].strip().lower(), []).append((day, row["id"]))
    return {email: min(found)[1] for email, found in first.items()}


def prove(source):
    kept, rejected = rows("out/members.csv"), rows("out/rejected.csv")
    for row in kept:
        for what in broken(row):
            yield f"id {row['id']}: {what}"
    ids = [row["id"] for row in kept]
    if ids != sorted(ids, key=int):
        yield "members.csv is not ordered by id"
    if len({row["email"] for row in kept}) < len(kept):
        yield "an address stands twice"
    every, both = [row["id"] for row in rows(source)], ids + [row["id"] for row in rejected]
    if sorted(both) != sorted(every):
        twice = {id_ for id_ in both if both.count(id_) > 1}
        yield f"lost: {sorted(set(every) - set(both))}; more than once: {sorted(twice)}"
    first = earliest(rows(source))
    for row in kept:
        if first.get(row["email"]) != row["id"]:
            yield f"id {row['id']} stays, but {first.get(row['email'])} joined first"
    # A row that needs nothing may not be thrown away.
    sound = {row["id"] for row in rows(source) if not list(broken(row)) and first[row["email"]] == row["id"]}
    if thrown := sound & {row["id"] for row in rejected}:
        yield f"rejected without need: {sorted(thrown)}"
    if without := [row["id"] for row in rejected if not row["reason"].strip()]:
        yield f"rejected without a reason: {without}"


if sys.argv[1] == "profile":
    table = rows(sys.argv[2])
    print(json.dumps({"rows": len(table), "broken": sum(any(broken(row)) for row in table)}))
else:
    wrong = list(prove(sys.argv[2]))
    print("\n".join(wrong) or "all rules are kept")
    sys.exit(bool(wrong))
