import unittest

from parcel.size import girth, is_bulky


class Size(unittest.TestCase):
    def test_girth(self):
        self.assertEqual(girth(20, 60, 30), 160)

    def test_a_girth_of_300_is_not_bulky(self):
        self.assertFalse(is_bulky(100, 50, 50))
        self.assertTrue(is_bulky(101, 50, 50))
