"""The durable record: append, read, lease, fence, verify."""
