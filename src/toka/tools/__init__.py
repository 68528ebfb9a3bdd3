"""What an agent can do: tools, each with its schema, the capability it needs and its effect."""
