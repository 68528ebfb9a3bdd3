"""Tests of `hours`, for the standard library's unittest."""

import unittest

from hours import is_open, merge


class MergeTest(unittest.TestCase):
    """Spans of one day become the fewest spans that say the same."""

    def test_apart(self) -> None:
        """Spans with a gap between them stay apart, and are sorted."""
        self.assertEqual(merge([(800, 1080), (540, 720)]), [(540, 720), (800, 1080)])

    def test_overlapping(self) -> None:
        """Spans that overlap are joined."""
        self.assertEqual(merge([(540, 720), (700, 800)]), [(540, 800)])

    def test_touching(self) -> None:
        """Spans that touch are joined: nobody closes at noon to open at noon."""
        self.assertEqual(merge([(540, 720), (720, 800)]), [(540, 800)])

    def test_inside(self) -> None:
        """A span inside another one changes nothing."""
        self.assertEqual(merge([(540, 1080), (600, 660)]), [(540, 1080)])


class OpenTest(unittest.TestCase):
    """The end of a span does not belong to it."""

    def test_ends(self) -> None:
        """Open in the first minute, closed in the last one."""
        self.assertEqual([is_open([(540, 720)], m) for m in (539, 540, 719, 720)], [False, True, True, False])


if __name__ == "__main__":
    unittest.main()
