import unittest

from parcel.price import price


class Price(unittest.TestCase):
    def test_a_light_parcel(self):
        self.assertEqual(price(200), 450)

    def test_a_step_includes_its_end(self):
        self.assertEqual([price(1000), price(1001), price(10000)], [450, 690, 1090])
        for grams in (0, -5, 10001):
            with self.assertRaises(ValueError):
                price(grams)
