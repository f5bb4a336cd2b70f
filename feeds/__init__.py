"""Sources of bars and headlines; a feed knows nothing of what comes after it."""
