"""Fetches pages, and tries again."""
