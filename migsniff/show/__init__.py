"""Events become something to look at: log lines, JSON, a live view, a summary."""
