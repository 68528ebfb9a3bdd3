"""Tests of the tools, in a real sandbox where they touch anything."""
