import unittest

from app.bill import bill


class Tabular(unittest.TestCase):
    def test_a_bill(self):
        self.assertEqual(bill([("tea", 250), ("a cake", 1125)]), "tea     2.50 EUR\na cake  11.25 EUR\ntotal   13.75 EUR\n")
