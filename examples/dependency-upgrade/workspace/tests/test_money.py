import unittest

from app.bill import rows


class Money(unittest.TestCase):
    def test_a_total_over_100(self):
        self.assertIn(("total", "112.99 EUR"), rows([("a chair", 9999), ("a cushion", 1300)]))
