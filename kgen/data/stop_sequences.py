"""Texts before which a text ends, while it is being written."""

from collections.abc import Sequence


def truncate_at_stop(text: str, stops: Sequence[str]) -> str:
    """Returns the text before the first stop sequence."""
    ends = [text.find(stop) for stop in stops]
    return text[: min([end for end in ends if end >= 0], default=len(text))]


def streamable_prefix(text: str, stops: Sequence[str], *, is_whole: bool) -> str:
    """Returns the part of a streamed text that further text cannot change.

    It ends before the first stop sequence. Without one, and unless the text `is_whole`,
    the last characters are held back: they may begin a stop sequence, or be a part of a
    character.
    """
    shown = truncate_at_stop(text, stops)
    if is_whole or shown != text:
        return shown
    held_back = max((len(stop) - 1 for stop in stops), default=0)
    return text[: max(len(text) - held_back, 0)].rstrip("\ufffd")
