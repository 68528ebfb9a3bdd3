"""The command line: one module a group of commands; what prints is pure."""
