"""x"""

from sikkerguard.core.lists.allowlist import AllowEntry
from sikkerguard.core.net.address import parse_prefix


def entries(*texts: str, reason: str = "own address") -> tuple[AllowEntry, ...]:
    """Allowed for this reason."""
    return tuple(AllowEntry(*parse_prefix(text), reason) for text in texts)
