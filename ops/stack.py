"""Makes the stack of the command available to the modules next to the package."""

from novi_bridge.stack import Stack

__all__ = ["Stack"]
