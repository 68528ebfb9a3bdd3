"""Values that every room shares: frozen, pure, free of I/O."""
