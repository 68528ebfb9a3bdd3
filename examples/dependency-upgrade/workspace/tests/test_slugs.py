import unittest

from app.links import link


class Slugs(unittest.TestCase):
    def test_an_address(self):
        self.assertEqual(link("Opening Hours"), "/pages/opening-hours")
