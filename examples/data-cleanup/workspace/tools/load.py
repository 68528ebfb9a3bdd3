"""Loads out/members.csv into out/members.db, and prints which share of the rows of FILE is in it.

python3 tools/load.py FILE [LEAST]    exits 1 when that is less than LEAST
"""

import csv
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

with Path("out/members.csv").open(newline="") as file:
    members = [(int(row["id"]), row["name"], row["email"], row["joined"]) for row in csv.DictReader(file)]
with Path(sys.argv[1]).open(newline="") as file:
    total = len(list(csv.DictReader(file)))
Path("out/members.db").unlink(missing_ok=True)
with closing(sqlite3.connect("out/members.db")) as base, base:
    base.execute("create table member (id integer primary key, name text, email text unique, joined text)")
    base.executemany("insert into member values (?, ?, ?, ?)", members)
share = round(len(members) / total, 3)
print(share)
sys.exit(len(sys.argv) > 2 and share < float(sys.argv[2]))
