"""migsniff: Wireshark for QEMU live migration."""

__version__ = "0.1.0"
