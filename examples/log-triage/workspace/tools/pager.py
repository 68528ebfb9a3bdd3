"""Signed messages for a pager gateway, which fetches them from out/: nothing is sent from here.

python3 tools/pager.py TEXT        writes out/page.json, signed with the key in PAGER_KEY
python3 tools/pager.py --verify    exits 1 unless its signature is that of the key
"""

import hashlib
import hmac
import json
import os
import sys
from pathlib import Path

PAGE = Path("out/page.json")


def signature(text):
    return hmac.new(os.environ["PAGER_KEY"].encode(), text.encode(), hashlib.sha256).hexdigest()


if sys.argv[1] == "--verify":
    page = json.loads(PAGE.read_text())
    sys.exit(not hmac.compare_digest(page["signature"], signature(page["text"])))
PAGE.write_text(json.dumps({"text": sys.argv[1], "signature": signature(sys.argv[1])}) + "\n")
print("1 page is ready")
