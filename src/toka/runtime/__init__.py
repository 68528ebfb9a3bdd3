"""The agent runtime: what one agent does, step by step, and what keeps it within its bounds."""
