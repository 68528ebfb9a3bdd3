"""The workspace as a whole: checkpoints of its state, going back to one, and the lock of those who write it."""
