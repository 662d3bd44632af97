"""Tokenizers: ids worked out by hand, in Python, in graphs and in tokenizer.json."""

import functools
import gzip
import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tokenizers as library

from kgen.data import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    bpe_tokenizer,
    tokenizer_from_json,
)
from kgen.data.graph_tokenizers import decode_ids, encode_strings, runs_in_graph

MIXED = [
    "To be, or not to be",
    "",
    "é è\r\n\tx\n\n",
    "日本語 😀👩‍👩‍👧",
    "\0\ufeff\u2028 \x7f\xa0\xad",
]
LEARNED = "low lower lowest slow\nnew newer newest 😀\n" * 9


@pytest.fixture(scope="module")
def bpe():
    return BPETokenizer.train([LEARNED], 270)


@pytest.fixture(scope="module")
def all_kinds(bpe):
    characters = CharTokenizer.of_text("".join(MIXED))
    return [characters, ByteTokenizer(), bpe, BPETokenizer(bpe.to_json(), SPECIAL)]


SPECIAL = ["<pad>", "<end>"]


# Ids by hand


def test_a_character_is_its_place_among_the_characters():
    tokenizer = CharTokenizer("\nabé😀")
    ids = tokenizer.encode("😀ab\né")
    assert ids.tolist() == [4, 1, 2, 0, 3] and ids.dtype == np.int32
    assert tokenizer.vocab_size == 5
    assert tokenizer.decode([4, -1, 3, 0, -7]) == "😀é\n"


def test_characters_of_a_text_ascend_by_code_point():
    assert CharTokenizer.of_text("ba😀\uffffab").characters == "ab\uffff😀"


def test_a_byte_is_its_value():
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("aé€")
    assert ids.tolist() == [97, 0xC3, 0xA9, 0xE2, 0x82, 0xAC]
    assert ids.dtype == np.int32 and tokenizer.vocab_size == 256
    assert tokenizer.decode([0xFF, 97, -1, 0xC3]) == "\ufffda\ufffd"


def test_bpe_joins_the_most_frequent_pair_first():
    # "ab" occurs six times and "bc" twice; each word counts on its own.
    tokenizer = BPETokenizer.train(["ab ab ab ab", "abc", "abc"], 257)
    assert tokenizer.vocab_size == 257
    assert json.loads(tokenizer.to_json())["model"]["merges"] == [["a", "b"]]
    single = {sign: tokenizer.encode(sign).item() for sign in "abc"}
    assert max(single.values()) < 256
    assert tokenizer.encode("abcb").tolist() == [256, single["c"], single["b"]]


def test_a_pair_that_occurs_once_is_not_joined():
    assert BPETokenizer.train(["abcd"], 300).vocab_size == 256


def test_the_same_texts_give_the_same_bpe(bpe):
    assert BPETokenizer.train([LEARNED], 270) == bpe
    assert BPETokenizer.train([LEARNED], 269) != bpe


def test_a_long_text_is_encoded_in_pieces_as_in_one(bpe):
    long = "".join(f"{LEARNED}\n\n \n{number}é\n.\n\t." for number in range(40))
    assert len(bpe_tokenizer._PIECE.findall(long)) == 4
    expected = bpe._tokenizer.encode(long).ids
    assert bpe.encode(long).tolist() == expected
    assert bpe._in_pieces


def test_a_text_stays_in_one_piece_where_a_token_goes_over_a_space():
    parts = json.loads(ByteTokenizer().to_json())
    parts["model"]["vocab"]["wĠ"] = 256
    parts["model"]["merges"] = [["w", "Ġ"]]
    tokenizer = BPETokenizer(json.dumps(parts))
    assert tokenizer.encode("w " * 5000).tolist() == [256] * 5000


# Round trips


def test_texts_come_back(all_kinds):
    for tokenizer in all_kinds:
        for text in MIXED:
            ids = tokenizer.encode(text)
            assert ids.dtype == np.int32 and ids.ndim == 1
            assert np.all((ids >= 0) & (ids < tokenizer.vocab_size))
            assert tokenizer.decode(ids) == text
            assert tokenizer.decode(ids.tolist()) == text


def test_a_config_makes_an_equal_tokenizer(all_kinds):
    for tokenizer in all_kinds:
        saved = json.dumps(keras.saving.serialize_keras_object(tokenizer))
        again = keras.saving.deserialize_keras_object(json.loads(saved))
        assert again == tokenizer and hash(again) == hash(tokenizer)
        assert type(again) is type(tokenizer)
        assert again.encode(MIXED[2]).tolist() == tokenizer.encode(MIXED[2]).tolist()
    assert len(set(all_kinds)) == 4
    assert CharTokenizer("ab") != CharTokenizer("abc")
    assert CharTokenizer("ab") != CharTokenizer("ab", SPECIAL)
    assert CharTokenizer("ab") != "ab"


def test_a_saved_file_makes_an_equal_tokenizer(all_kinds, tmp_path):
    for tokenizer in all_kinds:
        tokenizer.save(tmp_path / "tokenizer.json")
        text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
        again = tokenizer_from_json(text)
        assert again == tokenizer and type(again) is type(tokenizer)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": {"vocab": 5}}'])
def test_what_is_no_tokenizer_json_is_refused(text):
    with pytest.raises(ValueError, match="must be the text of a tokenizer.json"):
        tokenizer_from_json(text)


def test_the_saved_file_gives_the_same_ids_in_the_tokenizers_library(
    all_kinds, tmp_path
):
    for tokenizer in all_kinds:
        path = tmp_path / "tokenizer.json"
        tokenizer.save(path)
        other = library.Tokenizer.from_file(str(path))
        assert other.get_vocab_size() == tokenizer.vocab_size
        for text in MIXED:
            ids = tokenizer.encode(text).tolist()
            assert other.encode(text).ids == ids
            assert other.decode(ids) == text
    unknown = library.Tokenizer.from_str(CharTokenizer("ab").to_json())
    with pytest.raises(Exception, match="Missing .* token"):
        unknown.encode("abc")


def test_the_file_of_the_bytes_is_a_bpe_without_pairs():
    tokenizer = BPETokenizer(ByteTokenizer().to_json())
    for text in MIXED:
        expected = ByteTokenizer().encode(text).tolist()
        assert tokenizer.encode(text).tolist() == expected


def test_padding_and_truncation_of_a_file_are_passed_over(bpe):
    made = library.Tokenizer.from_str(bpe.to_json())
    made.enable_truncation(2)
    made.enable_padding(length=9)
    tokenizer = BPETokenizer(made.to_str())
    assert tokenizer.encode("a b c").tolist() == bpe.encode("a b c").tolist()


def test_text_that_spells_a_special_token_stays_text(bpe):
    parts = json.loads(bpe.to_json())
    added = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    added |= {"id": bpe.vocab_size, "content": "<|end|>", "special": True}
    tokenizer = BPETokenizer(json.dumps(parts | {"added_tokens": [added]}))
    assert tokenizer.vocab_size == bpe.vocab_size + 1
    for text in ("a<|end|>b", "<|end|>"):
        assert tokenizer.encode(text).tolist() == bpe.encode(text).tolist()
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.special_id("<|end|>") == bpe.vocab_size
    assert tokenizer.decode([65, bpe.vocab_size, 65]) == tokenizer.decode([65, 65])


def test_special_tokens_have_the_ids_after_those_of_text(bpe):
    for plain, tokenizer in (
        (CharTokenizer("<>abdenp"), CharTokenizer("<>abdenp", SPECIAL)),
        (ByteTokenizer(), ByteTokenizer(SPECIAL)),
        (bpe, BPETokenizer(bpe.to_json(), SPECIAL)),
    ):
        ids = [tokenizer.special_id(name) for name in SPECIAL]
        assert ids == [plain.vocab_size, plain.vocab_size + 1]
        assert tokenizer.vocab_size == plain.vocab_size + 2
        spelt = tokenizer.encode("<end>")
        assert spelt.tolist() == plain.encode("<end>").tolist()
        assert tokenizer.decode([*spelt, *ids, *spelt]) == "<end><end>"
        strings = decode_ids(tokenizer, tf.constant([[*ids, *spelt]], tf.int32))
        assert strings.numpy().tolist() == [b"<end>"]
        assert tokenizer_from_json(tokenizer.to_json()) == tokenizer
        other = library.Tokenizer.from_str(tokenizer.to_json())
        assert [other.token_to_id(name) for name in SPECIAL] == ids
        with pytest.raises(
            ValueError, match="Received: '<sep>'; it has '<pad>', '<end>'"
        ):
            tokenizer.special_id("<sep>")
    for wrong in (["a", "a"], [""]):
        with pytest.raises(ValueError, match="`special_tokens` must be distinct"):
            ByteTokenizer(wrong)


# In graphs


def test_graphs_encode_and_decode_as_python_does(all_kinds):
    for tokenizer in all_kinds:
        encode_here = functools.partial(encode_strings, tokenizer)
        encode = tf.function(encode_here)
        decode = tf.function(functools.partial(decode_ids, tokenizer))
        for texts in (MIXED, MIXED[1:2], []):
            strings = tf.constant([text.encode() for text in texts], tf.string)
            for ids in (encode(strings), encode_here(strings)):
                assert isinstance(ids, tf.RaggedTensor) and ids.dtype == tf.int32
                expected = [tokenizer.encode(one).tolist() for one in texts]
                assert ids.to_list() == expected
                padded = ids.to_tensor(-1)
                for wanted in (padded, tf.cast(padded, tf.int64)):
                    assert decode(wanted).numpy().tolist() == strings.numpy().tolist()


def test_negative_ids_decode_to_nothing_wherever_they_are(all_kinds):
    ids = tf.constant([[-1, 7, -9, 8], [-1, -1, -1, -1]])
    for tokenizer in all_kinds:
        expected = tokenizer.decode([7, 8]).encode()
        assert decode_ids(tokenizer, ids).numpy().tolist() == [expected, b""]


def test_graphs_keep_bytes_that_are_no_text():
    tokenizer = ByteTokenizer()
    strings = tf.constant([b"\xff\x00\xc3", b"\x80"])
    ids = encode_strings(tokenizer, strings)
    assert ids.to_list() == [[255, 0, 195], [128]]
    decoded = decode_ids(tokenizer, ids.to_tensor(-1))
    assert decoded.numpy().tolist() == strings.numpy().tolist()


def padded_ids(tokenizer, strings):
    return encode_strings(tokenizer, strings).to_tensor(-1)


def test_a_saved_model_encodes_and_decodes(all_kinds, tmp_path):
    for index, tokenizer in enumerate(all_kinds):
        module = tf.Module()
        module.encode = tf.function(
            functools.partial(padded_ids, tokenizer), [tf.TensorSpec([None], tf.string)]
        )
        module.decode = tf.function(
            functools.partial(decode_ids, tokenizer),
            [tf.TensorSpec([None, None], tf.int32)],
        )
        tf.saved_model.save(module, str(tmp_path / str(index)))
        loaded = tf.saved_model.load(str(tmp_path / str(index)))
        strings = tf.constant([text.encode() for text in MIXED])
        ids = loaded.encode(strings)
        assert [row[row >= 0].tolist() for row in ids.numpy()] == [
            tokenizer.encode(text).tolist() for text in MIXED
        ]
        assert loaded.decode(ids).numpy().tolist() == strings.numpy().tolist()
        if isinstance(tokenizer, CharTokenizer):
            with pytest.raises(tf.errors.InvalidArgumentError, match="one of the"):
                loaded.encode(tf.constant(["unknown: ß"]))


def test_graphs_refuse_what_python_refuses(bpe):
    encode = functools.partial(encode_strings, CharTokenizer("abé"))
    for call in (encode, tf.function(encode)):
        with pytest.raises(
            tf.errors.InvalidArgumentError, match="(?s)Received:.{1,5}zA"
        ):
            call(tf.constant(["ab", "az", "Aé"]))
        with pytest.raises(tf.errors.InvalidArgumentError, match="Invalid format"):
            call(tf.constant([b"a\xff"]))
    decode = functools.partial(decode_ids, CharTokenizer("abé"))
    for call in (decode, tf.function(decode)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="below vocab_size=3"):
            call(tf.constant([[0, 3]]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="Invalid format"):
        encode_strings(bpe, tf.constant([b"a\xff"]))


def random_texts(number, seed=0):
    """Texts of all planes of Unicode, with many spaces, letters and apostrophes."""
    rng = np.random.default_rng(seed)
    often = [*map(ord, "   \n\t'stdmA1\x0b\x1c\x1f\x85\xa0\u2028\u3000")]
    texts = []
    for _ in range(number):
        size = rng.integers(0, 40)
        points = rng.integers(0, rng.choice([0x250, 0x3000, 0x10000, 0x110000]), size)
        points = np.where(rng.random(size) < 0.5, rng.choice(often, size), points)
        texts.append("".join(chr(p) for p in points if not 0xD800 <= p < 0xE000))
    return texts


def test_bpe_in_a_graph_gives_the_ids_of_the_library(bpe):
    encode = tf.function(functools.partial(encode_strings, bpe))
    edges = ["  a", "a  ", " \n ", "\n\nb", "  's", "don't  you're", "ab" * 2000]
    for texts in (random_texts(10_000), edges):
        found = encode(tf.constant([text.encode() for text in texts])).to_list()
        assert found == [bpe.encode(text).tolist() for text in texts]


def test_bpe_in_a_graph_gives_the_ids_of_the_library_for_multi30k(test_data):
    folder = test_data / "data" / "multi30k"
    texts = {
        path.name: gzip.decompress(path.read_bytes()).decode().splitlines()
        for path in folder.glob("*.gz")
    }
    training = texts["train.en.gz"][:5000] + texts["train.de.gz"][:5000]
    tokenizer = BPETokenizer.train(training, 4000)
    encode = tf.function(functools.partial(encode_strings, tokenizer))
    tests = [line for name in sorted(texts) if "test" in name for line in texts[name]]
    found = encode(tf.constant([text.encode() for text in tests])).to_list()
    assert len(tests) == 4000
    assert found == [tokenizer.encode(text).tolist() for text in tests]


@pytest.mark.slow
def test_bpe_in_a_graph_splits_at_each_character_of_unicode_as_the_library(bpe):
    encode = tf.function(functools.partial(encode_strings, bpe))
    points = [p for p in range(0x110000) if not 0xD800 <= p < 0xE000]
    for start in range(0, len(points), 50_000):
        texts = [f"low{chr(p)}1 {chr(p)}low" for p in points[start : start + 50_000]]
        found = encode(tf.constant([text.encode() for text in texts])).to_list()
        assert found == [bpe.encode(text).tolist() for text in texts]


def test_bpe_of_other_words_is_for_python_alone(bpe):
    parts = json.loads(bpe.to_json())
    parts["pre_tokenizer"]["use_regex"] = False
    other = BPETokenizer(json.dumps(parts))
    assert runs_in_graph(bpe) and not runs_in_graph(other)
    with pytest.raises(NotImplementedError, match="splits words as GPT-2 does"):
        encode_strings(other, tf.constant(["a"]))


# Errors


def test_unknown_characters_are_named_with_their_places():
    tokenizer = CharTokenizer("abc")
    with pytest.raises(
        ValueError, match=r"of the 3 .*'z' at 1, 3, 4, \.\.\.; 'Z' at 2\. .*of_text"
    ):
        tokenizer.encode("azZzzzb")
    with pytest.raises(ValueError, match="'h' at 4 and 3 others"):
        tokenizer.encode("defghijk")


@pytest.mark.parametrize("characters", ["", "ba", "aa", "ab😀é"])
def test_characters_must_ascend(characters):
    with pytest.raises(ValueError, match="distinct, ascending.*of_text"):
        CharTokenizer(characters)


def test_what_is_no_text_is_refused(all_kinds):
    for tokenizer in all_kinds:
        with pytest.raises(ValueError, match=r"'\\ud800' at 1 of the text"):
            tokenizer.encode("a\ud800")
        with pytest.raises(TypeError, match="must be a str. Received: bytes"):
            tokenizer.encode(b"a")
    with pytest.raises(ValueError, match="surrogates"):
        CharTokenizer("a\ud800")


def test_wrong_ids_are_refused(all_kinds):
    for tokenizer in all_kinds:
        size = tokenizer.vocab_size
        with pytest.raises(ValueError, match=f"vocab_size={size}. Received: {size}"):
            tokenizer.decode([0, size])
        for ids in ([[1]], [1.0], 3, ["a"]):
            with pytest.raises(ValueError, match="whole numbers in one dimension"):
                tokenizer.decode(ids)
        assert tokenizer.decode([]) == ""


def test_a_tokenizer_that_loses_text_is_refused(bpe):
    with pytest.raises(ValueError, match="WordLevel that lacks some bytes"):
        BPETokenizer(CharTokenizer("ab").to_json())
    parts = json.loads(bpe.to_json())
    parts["decoder"] = None
    with pytest.raises(ValueError, match="BPE that changes some texts"):
        BPETokenizer(json.dumps(parts))


def test_training_needs_texts_and_room_for_the_bytes():
    with pytest.raises(ValueError, match="at least 256.*vocab_size=255. Try"):
        BPETokenizer.train(["a"], 255)
    with pytest.raises(TypeError, match=r"Received: str. Try \[text\]"):
        BPETokenizer.train("a", 256)


def test_without_the_library_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"pip install \'\.\[text\]\'"):
        BPETokenizer.train(["a"], 256)
    # The others do without it.
    for one in (CharTokenizer.of_text(MIXED[3]), ByteTokenizer()):
        assert one.decode(one.encode(MIXED[3])) == MIXED[3]
        assert json.loads(one.to_json())["model"]["vocab"]


def test_the_base_class_is_for_all(all_kinds):
    assert all(isinstance(one, Tokenizer) for one in all_kinds)
    assert repr(ByteTokenizer()) == "ByteTokenizer(256 ids)"
