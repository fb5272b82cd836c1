"""All modules with rules: importing this one registers them."""

from migsniff.expert import convergence, framing, inventory, silence, speed, tls, transport, virtqueues

__all__ = ["convergence", "framing", "inventory", "silence", "speed", "tls", "transport", "virtqueues"]
