import unittest

from app.bill import bill


class Tabular(unittest.TestCase):
    def test_a_bill(self):
        lines = ["tea     2.50 EUR", "a cake  11.25 EUR", "total   13.75 EUR"]
        self.assertEqual(bill([("tea", 250), ("a cake", 1125)]), "\n".join(lines) + "\n")
