import unittest

from app.visit import takes


class Spans(unittest.TestCase):
    def test_over_an_hour(self):
        self.assertEqual(takes(75), "takes 1h15m")
