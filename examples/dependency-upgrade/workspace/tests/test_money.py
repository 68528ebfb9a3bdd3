import unittest

from app.bill import bill


class Money(unittest.TestCase):
    def test_a_total_over_100(self):
        self.assertIn("112.99 EUR", bill([("a chair", 9999), ("a cushion", 1300)]))
