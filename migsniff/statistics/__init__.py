"""Statistics (-z): events -> tables."""
