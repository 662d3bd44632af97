"""Texts before which a text ends, while it is being written."""

from collections.abc import Sequence


def truncate_at_stop(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stops."""
    ends = [text.find(stop) for stop in stops]
    return text[: min([end for end in ends if end >= 0], default=len(text))]


def streamable_prefix(text: str, stops: Sequence[str], *, is_whole: bool) -> str:
    """What can be shown of a text, of which more may come unless it `is_whole`.

    That is all up to the first of the stops; and while there is none, not the last
    characters, which may be the begin of one, or a part of a character.
    """
    shown = truncate_at_stop(text, stops)
    if is_whole or shown != text:
        return shown
    held_back = max((len(stop) - 1 for stop in stops), default=0)
    return text[: max(len(text) - held_back, 0)].rstrip("\ufffd")
