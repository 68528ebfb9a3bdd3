"""Prints the names of the tests that fail, one a line, in the order of their names.

python3 tools/failing.py tests
"""

import sys
import unittest

suite = unittest.defaultTestLoader.discover(sys.argv[1], top_level_dir=".")
result = suite.run(unittest.TestResult())
for test in sorted(test.id() for test, _ in result.failures + result.errors):
    print(test)
