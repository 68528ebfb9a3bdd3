import unittest

from parcel.code import check_digit


class Code(unittest.TestCase):
    def test_check_digit(self):
        self.assertEqual(check_digit("12345678"), "4")

    def test_no_check_digit_has_two_digits(self):
        self.assertEqual(check_digit("0000"), "0")
