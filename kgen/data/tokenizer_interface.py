"""The interface of every tokenizer: text to ids and back.

`kgen.data.graph_tokenizers` does the same in TensorFlow operations.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from kgen.arguments import require
from kgen.data.text_files import check_unicode
from kgen.files import replacing


class Tokenizer:
    """Maps text to token ids and back.

    Special tokens mark beginnings, ends and the like. No text has their ids: a special
    token that is spelt in a text stays text. They decode to nothing.

    Tokenizers of one class and with an equal `get_config()` are equal.

    Attributes:
        kind: "char", "byte" or "bpe".
        vocab_size: Number of ids: they are 0 to vocab_size - 1.
        special_ids: The id of each special token, by its name.
    """

    kind: ClassVar[str]
    vocab_size: int
    special_ids: dict[str, int]

    _arguments: ClassVar[tuple[str, ...]] = ()  # of the constructor, as attributes

    def take_special_tokens(
        self, special_tokens: Sequence[str], num_ids: int, known: dict[str, int]
    ) -> None:
        """Sets `special_ids` and `vocab_size`.

        Args:
            special_tokens: Names; those that are not known get the next ids.
            num_ids: Number of the other ids, and of the known ones.
            known: Special tokens that have an id already.

        Raises:
            ValueError: A name is empty or given twice.
        """
        names = tuple(special_tokens)
        kept = all(names) and len({*names}) == len(names)
        require(kept, "special_tokens", names, "be distinct names, none of them empty")
        self.special_tokens = names
        new = [name for name in names if name not in known]
        self.special_ids = known | {n: num_ids + i for i, n in enumerate(new)}
        self.vocab_size = num_ids + len(new)

    def special_id(self, name: str) -> int:
        """Returns the id of a special token.

        Raises:
            ValueError: There is none of this name.
        """
        if name not in self.special_ids:
            raise ValueError(
                f"The tokenizer must have the special token. Received: {name!r}; it "
                f"has {', '.join(map(repr, self.special_ids)) or 'none'}. Make it with "
                f"special_tokens=[{name!r}]."
            )
        return self.special_ids[name]

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text, int32 [time].

        Raises:
            TypeError: The text is not a str.
            ValueError: It has unknown characters or lone surrogates. The message names
                them and their indices.
        """
        check_text(text)
        return self._encode(text)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of ids.

        Negative ids are padding; these and special tokens have no text. Invalid UTF-8
        becomes the replacement character U+FFFD.

        Args:
            ids: Whole numbers [time], below `vocab_size`.

        Raises:
            ValueError: The ids have another type, shape or range.
        """
        array = np.asarray(ids)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise ValueError(
                "`ids` must be whole numbers in one dimension. Received: an array of "
                f"shape {array.shape} and type {array.dtype}. Decode the rows of a "
                "batch one by one."
            )
        array = array.astype(np.int64)
        if np.any(array >= self.vocab_size):
            raise ValueError(
                f"`ids` must be below vocab_size={self.vocab_size}. Received: "
                f"{array.max()}"
            )
        hidden = (array < 0) | np.isin(array, [*self.special_ids.values()])
        return self._decode(array[~hidden])

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {name: getattr(self, name) for name in self._arguments}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Tokenizer:
        """Returns the tokenizer of `get_config`."""
        return cls(**config)

    def to_json(self) -> str:
        """Returns the text of a tokenizer.json.

        The `tokenizers` library, and programs built on it, give the same ids with it,
        for texts that spell no special token.
        """
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a tokenizer.json; see `to_json`.

        Args:
            path: The file to write, in a folder that exists.
        """
        with replacing(path) as file:
            file.write(self.to_json().encode())

    def _encode(self, text: str) -> np.ndarray:
        raise NotImplementedError

    def _decode(self, ids: np.ndarray) -> str:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.vocab_size:,} ids)"

    def __eq__(self, other: object) -> bool:
        same = type(self) is type(other)
        return same and self.get_config() == other.get_config()  # type: ignore

    def __hash__(self) -> int:
        return hash(json.dumps(self.get_config()))


def check_text(text: str) -> None:
    """Refuses anything but a str without lone surrogates."""
    if not isinstance(text, str):
        raise TypeError(f"A text must be a str. Received: {type(text).__name__}")
    check_unicode(text)


def added_tokens(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Special tokens as entries of a tokenizer.json."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False}
    plain |= {"normalized": False, "special": True}
    ids = sorted(tokenizer.special_ids.items(), key=lambda item: item[1])
    return [{"id": number, "content": name} | plain for name, number in ids]
