"""What comes from elsewhere, fit to be shown: on a terminal, in a log, on a page."""

from __future__ import annotations

LONGEST = 200


def printable(text: str, longest: int = LONGEST) -> str:
    """A text of somebody else's: what is not printable ASCII is a question mark, and it has at most `longest`
    characters. An escape sequence would act on the terminal, and a look-alike letter deceive its reader."""
    shown = "".join(character if " " <= character <= "~" else "?" for character in text[: longest + 1])
    return shown if len(shown) <= longest else f"{shown[: longest - 3]}..."


def harmless(text: str, *, lines: bool = False) -> str:
    """A text of our own, in which something of somebody else's may have stayed: without control characters, marks that
    change the direction of writing, and what is no character. Letters of all scripts stay, and with `lines` so do line
    ends, which are spaces otherwise."""
    if text.isprintable():
        return text
    shown = ("\n" if lines else " ").join(text.split("\n"))
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in shown)
