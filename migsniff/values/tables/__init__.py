"""Numbers and names out of the headers of Linux, made by tests/uapi.py."""
