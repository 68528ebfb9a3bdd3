"""What happened: the kinds of events, the states they fold into, and which changes of state are legal."""
