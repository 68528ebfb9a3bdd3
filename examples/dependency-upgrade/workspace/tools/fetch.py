"""Takes a version of a package from index/ into vendor/, as a package manager would from its registry.

python3 tools/fetch.py NAME VERSION
"""

import shutil
import sys
from pathlib import Path

name, version = sys.argv[1:]
for file in Path("index", name, version).glob("*.py"):
    part = shutil.copy(file, Path("vendor", name, file.name + ".part"))
    part.replace(part.with_suffix(""))  # tests of others may read it now
print(f"{name} {version}")
