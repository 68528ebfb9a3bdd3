"""Talking to models: one gateway over vendor, local and scripted models, the prompts, and the redaction of secrets."""
