"""What the user wrote: specs and settings, read, checked and frozen."""
