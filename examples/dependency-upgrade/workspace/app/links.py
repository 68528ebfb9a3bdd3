"""Addresses of pages."""

from slugs import slug


def link(title):
    return "/pages/" + slug(title, "-")
