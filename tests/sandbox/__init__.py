"""Tests of the sandbox: real bwrap, real processes."""
