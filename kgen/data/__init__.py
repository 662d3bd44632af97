"""Data: a name, a path or an array in, a batched tf.data.Dataset out."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "bpe_tokenizer": ["BPETokenizer"],
        "image_sets": ["ImageSet", "images", "open_images"],
        "pipeline": ["Pipeline"],
        "rating_sets": ["RatingSet", "open_ratings", "ratings"],
        "text_sets": ["TextSet", "open_text", "text"],
        "tokenizer_interface": ["Tokenizer"],
        "tokenizers": [
            "ByteTokenizer",
            "CharTokenizer",
            "tokenizer_from_json",
        ],
    },
)
