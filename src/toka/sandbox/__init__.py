"""Where hands work: one operating-system sandbox per agent, one fresh process namespace per command."""
