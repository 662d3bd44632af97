"""Text data sets: sources, splits and windows."""

import codecs
import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from kgen.data import BPETokenizer, CharTokenizer, open_text, pipeline, text
from kgen.data.pipeline import permutation


def open_whole(source, **options):
    """Opens a text that is all for training and may be short."""
    return open_text(source, **({"context": 1, "validation_fraction": 0} | options))


def joined(opened):
    return "".join(
        opened.tokenizer.decode(opened.tokens(split)) for split in opened.splits
    )


def counting(num_tokens, **options):
    """A set whose tokens are 0, 1, 2 ..."""
    return open_whole(["".join(map(chr, range(num_tokens)))], **options)


def windows(dataset):
    return np.concatenate([batch["tokens"].numpy() for batch in dataset]).tolist()


def write(path, *lines):
    path.write_bytes("\n".join(lines).encode())
    return path


def tar(content):
    """A tar archive of one file, called a.txt."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


# Sources


def test_a_file_is_one_text_with_its_newlines_and_without_its_mark(tmp_path):
    path = tmp_path / "notes.md"
    path.write_bytes(codecs.BOM_UTF8 + "é\r\nb\rc\n\n\ufeff".encode())
    opened = open_whole(path)
    assert joined(opened) == "é\r\nb\rc\n\n\ufeff"
    assert opened.name == "notes.md" and opened.notes == ()
    assert opened.splits == {"train": 9} and opened.characters("train") == 9


def test_a_gzipped_file_is_read_like_its_content(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"abc"))
    assert joined(open_whole(tmp_path / "a.txt.gz")) == "abc"
    lines = b'{"text": "ab"}\n{"text": "c"}'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    assert joined(open_whole(tmp_path / "a.jsonl.gz")) == "ab\n\nc"


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_is_read_in_the_order_of_names(tmp_path, packed):
    folder = tmp_path / "books"
    (folder / "b").mkdir(parents=True)
    for name in ("c.txt", "b/2", "b/10.txt", "a.rst", ".hidden"):
        write(folder / name, name)
    write(folder / "d.jsonl", '{"text": "d1"}', "", '{"text": ""}', '{"text": "d2"}')
    path = folder
    if packed:
        path = tmp_path / "books.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*"), reverse=True):
                archive.write(file, file.relative_to(tmp_path))
    opened = open_whole(path)
    assert joined(opened) == "\n\n".join(
        ["a.rst", "b/10.txt", "b/2", "c.txt", "d1", "d2"]
    )
    assert opened.name == "books"
    assert opened.notes == (
        "left out, empty documents: 1",
        "joined by blank lines: 6 documents",
    )


def test_a_link_to_a_folder_around_it_is_passed_over(tmp_path):
    folder = tmp_path / "books"
    (folder / "inner").mkdir(parents=True)
    write(folder / "inner" / "a.txt", "abc")
    (folder / "inner" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "self").symlink_to(folder, target_is_directory=True)
    write(tmp_path / "elsewhere.txt", "def")
    (folder / "link.txt").symlink_to(tmp_path / "elsewhere.txt")
    assert joined(open_whole(folder)) == "abc\n\ndef"


def test_backslashes_separate_the_folders_of_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("books\\b\\1.txt", "last")
        archive.writestr("books\\a\\", "")
        archive.writestr("books\\a\\2.txt", "first")
    assert joined(open_whole(tmp_path / "a.zip")) == "first\n\nlast"


def test_json_lines_hold_a_document_each(tmp_path):
    # U+2028 ends a line for `str.splitlines`, and for JSON it does not.
    path = write(
        tmp_path / "a.jsonl",
        '{"body": "one\\ntwo\u2028", "text": 1}\r',
        " ",
        '{"body": "\\ud83d\\ude00"}',
    )
    assert joined(open_whole(path, text_key="body")) == "one\ntwo\u2028\n\n😀"


def test_a_list_is_documents():
    opened = open_whole(["ab", "", "cd"])
    assert joined(opened) == "ab\n\ncd" and opened.name == "list"
    assert open_whole(("ab",)).splits == {"train": 2}


def prepare_set(folder, name, features, rows):
    import tensorflow_datasets as tfds

    def dataset(split):
        values = {key: [row[key] for row in rows[split]] for key in features}
        return tf.data.Dataset.from_tensor_slices(values)

    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        data_dir=folder,
        features=tfds.features.FeaturesDict(features),
        split_datasets={split: dataset(split) for split in rows},
        disable_shuffling=True,
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_named_set_is_read_by_its_text_feature(tmp_path):
    import tensorflow_datasets as tfds

    one = {"content": tfds.features.Text(), "label": np.int64}
    rows = [{"content": word, "label": 1} for word in ("ab", "é")]
    prepare_set(tmp_path, "made_up", one, {"train": rows, "test": rows[:1]})
    opened = open_whole("made_up", data_dir=tmp_path)
    assert sorted(joined(opened).split("\n\n")) == ["ab", "ab", "é"]
    assert opened.notes[0] == "read as one: its 2 splits"
    with pytest.raises(ValueError, match="feature 'body'.*made_up with content"):
        open_whole("made_up", data_dir=tmp_path, text_key="body")
    two = {"source": tfds.features.Text(), "target": tfds.features.Text()}
    rows = [{"source": "abc", "target": "xyz"}]
    prepare_set(tmp_path, "pairs", two, {"train": rows})
    with pytest.raises(ValueError, match="source, target. Name one by `text_key`"):
        open_whole("pairs", data_dir=tmp_path)
    opened = open_whole("pairs", data_dir=tmp_path, text_key="target")
    assert joined(opened) == "xyz"


# Errors of sources


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "must have text. Received: .*a.txt, which is empty"),
        ("a.txt", codecs.BOM_UTF8, "a.txt, which is empty"),
        ("a.txt", b"ab\xe9c", "a.txt, with the byte 0xe9 at 2"),
        ("a.txt", codecs.BOM_UTF8 + b"\xff", "the byte 0xff at 3"),
        ("a.txt", "ab".encode("utf-16"), "the byte 0xff at 0"),
        ("a.txt", "ab".encode("utf-16-le"), "a.txt, with the byte 0x00 at 1"),
        ("a.txt", "ab".encode("utf-32-be"), "the byte 0x00 at 0. Convert UTF-16"),
        ("a.tar", tar(b"hello"), "a.tar, with the byte 0x00 at 5. .*unpack an archive"),
        (
            "a.tar.gz",
            gzip.compress(tar(b"hi"), mtime=0),
            "a.tar.gz, with the byte 0x00 at 5",
        ),
        ("a.jsonl", b'{"text": "a\0"}', "the byte 0x00 at 11"),
        ("a.gz", b"ab", "Cannot read .*a.gz: it is damaged"),
        ("a.gz", gzip.compress(b"ab" * 99, mtime=0)[:-9], "Cannot read .*a.gz"),
        ("a.zip", b"ab", "Cannot read .*a.zip"),
        ("a.jsonl", b"\n", "a.jsonl, which is empty"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": ', "must be an object in JSON.*line 3"),
        ("a.jsonl", b'{"text": "a"}\n["a"]', "key 'text'. .*no object in .*line 2"),
        ("a.jsonl", b'{"body": "a", "n": 1}', "body, n in .*line 1. .*`text_key`"),
        ("a.jsonl", b'{"text": 3}', "key 'text'"),
        ("a.jsonl", b'{"text": "a\\ud800"}', r"'\\ud800' at 1 of .*line 1"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_text(tmp_path / name, context=1)


def test_a_broken_file_of_a_folder_or_a_zip_is_named(tmp_path):
    folder = tmp_path / "books"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="no file in .*books"):
        open_text(folder)
    write(folder / "a.txt", "")
    with pytest.raises(ValueError, match="books, which is empty"):
        open_text(folder)
    (folder / "cover.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match="cover.png, with the byte 0x89 at 0"):
        open_text(folder)
    path = tmp_path / "books.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "some text")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"some text", b"same text", 1))
    with pytest.raises(ValueError, match="books.zip/a.txt: the zip is damaged"):
        open_text(path)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("no/such/file.txt", FileNotFoundError, "no file or folder 'no/such/file.txt'"),
        ("To be or not.\n" * 999, FileNotFoundError, r"in a list: \[text\]"),
        ("tiny_shakespear", ValueError, "Did you mean tiny_shakespeare"),
        (None, TypeError, "a list of str. Received: NoneType"),
        (["a", b"b"], TypeError, "Received: bytes at 1"),
        (["a", "b\udfff"], ValueError, "'.udfff' at 1 of document 1"),
        ([], ValueError, "`source`, which is empty"),
        (["", ""], ValueError, "which is empty"),
    ],
)
def test_another_source_is_refused(source, error, message):
    with pytest.raises(error, match=message):
        open_text(source)


# Splits


@pytest.mark.parametrize(
    ("length", "fractions", "expected"),
    [
        (26, (0.1, 0.0), (23, 3, 0)),  # 23.4
        (20, (0.1, 0.1), (16, 2, 2)),
        (20, (0.05, 0.05), (18, 1, 1)),
        (20, (0, 0.25), (15, 0, 5)),
        (20, (0.3, 0.0), (14, 6, 0)),
        (20, (0, 0), (20, 0, 0)),
        (10, (0.15, 0.15), (7, 1, 2)),  # 7 and 8.5
    ],
)
def test_a_text_is_cut_by_its_characters(length, fractions, expected):
    whole = "".join(map(chr, range(0x100, 0x100 + length)))  # two bytes each
    validation, test = fractions
    opened = open_text(
        [whole],
        tokenizer="byte",
        validation_fraction=validation,
        test_fraction=test,
        context=1,
    )
    splits = ("train", "validation", "test")
    counts = {
        split: count for split, count in zip(splits, expected, strict=True) if count
    }
    assert {split: opened.characters(split) for split in opened.splits} == counts
    assert opened.splits == {split: 2 * count for split, count in counts.items()}
    assert joined(opened) == whole


def test_the_splits_of_all_tokenizers_are_the_same_characters():
    documents = ["low lower lowest\n" * 20, "new newer né 😀\n" * 20]
    options = {"context": 4, "test_fraction": 0.1}
    made = [
        open_text(documents, **options),
        open_text(documents, tokenizer="byte", **options),
        open_text(documents, tokenizer="bpe", vocab_size=265, **options),
    ]
    for split in ("train", "validation", "test"):
        parts = {one.tokenizer.decode(one.tokens(split)) for one in made}
        assert len(parts) == 1
        assert {one.characters(split) for one in made} == {len(parts.pop())}
    assert [one.tokenizer.kind for one in made] == ["char", "byte", "bpe"]
    assert len({one.fingerprint for one in made}) == 3


def test_characters_are_those_of_the_whole_text_and_bpe_is_of_training_alone():
    whole = "ab" * 45 + "cd" * 5
    assert open_text([whole], context=4).tokenizer == CharTokenizer("abcd")
    opened = open_text([whole], tokenizer="bpe", vocab_size=300, context=4)
    assert opened.tokenizer == BPETokenizer.train(["ab" * 45], 300)
    size = opened.tokenizer.vocab_size
    assert size < 300 and opened.notes == ("too few pairs to make 300 tokens",)


def test_a_tokenizer_is_taken_as_it_is():
    tokenizer = CharTokenizer("abcxyz")
    opened = open_whole(["cab"], tokenizer=tokenizer)
    assert opened.tokenizer is tokenizer
    assert opened.tokens("train").tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="one of the 6 .*'é' at 2"):
        open_whole(["abé"], tokenizer=tokenizer)


@pytest.mark.parametrize("num_ids", [256, 257, 65536, 65537])
def test_every_id_is_stored(num_ids):
    points = [*range(0xD800), *range(0xE000, 0x110000)][:num_ids]
    characters = "".join(map(chr, points))
    opened = open_whole([characters[-3:]], tokenizer=CharTokenizer(characters))
    expected = [num_ids - 3, num_ids - 2, num_ids - 1]
    tokens = opened.tokens("train")
    assert tokens.tolist() == expected and tokens.dtype == np.int32
    made = opened.pipeline("train", batch_size=1).dataset()
    assert windows(made) == [expected[:2], expected[1:]]


def test_the_fingerprint_sees_every_change():
    source = ["abcabcabca" * 5, "x"]
    prints = [
        open_text(source, context=2).fingerprint,
        open_text([source[0], "y"], context=2).fingerprint,
        open_text(source, context=2, validation_fraction=0.2).fingerprint,
        open_text(source, context=2, test_fraction=0.1).fingerprint,
        open_text(source, context=2, tokenizer="byte").fingerprint,
    ]
    assert len(set(prints)) == 5
    assert open_text(tuple(source), context=3).fingerprint == prints[0]


def test_describe_is_one_line_with_the_notes():
    opened = open_text(["a" * 50, "b" * 50], context=4)
    assert str(opened) == opened.describe()
    assert opened.describe() == (
        "list: 102 characters, char tokenizer with 3 ids, context 4; tokens: train 91, "
        "validation 11; joined by blank lines: 2 documents"
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tokenizer": "word"}, ValueError, "char, byte, bpe or .*'word'"),
        ({"tokenizer": 7}, TypeError, "Received: int"),
        ({"tokenizer": {"kind": "x"}}, TypeError, "a tokenizer. Received: dict"),
        ({"tokenizer": "bpe"}, ValueError, "must be given .*Try 1024"),
        ({"vocab_size": 300}, ValueError, "no other.*vocab_size=300.*'char'"),
        ({"tokenizer": "bpe", "vocab_size": 9}, ValueError, "vocab_size=9"),
        ({"context": 0}, ValueError, "context=0"),
        ({"context": 2.5}, ValueError, "context=2.5"),
        ({"validation_fraction": -0.1}, ValueError, "Received: -0.1 and"),
        ({"validation_fraction": 1}, ValueError, "leave something"),
        ({"validation_fraction": float("nan")}, ValueError, "Received: nan"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, ValueError, "leave"),
        ({"context": 90}, ValueError, "Received: 90 in train .*Try context=9 or less"),
        ({"context": 10}, ValueError, "10 in validation .*context=9 or less, or take"),
        ({"validation_fraction": 0.01}, ValueError, "1 in validation .*4. Take more"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        open_text(["ab" * 50], **({"context": 4} | options))


@pytest.mark.parametrize("method", ["tokens", "characters"])
def test_an_unknown_split_is_refused(method):
    opened = open_text(["ab" * 50], context=4)
    with pytest.raises(
        ValueError, match="of train, validation. Received: split='test'"
    ):
        getattr(opened, method)("test")
    with pytest.raises(ValueError, match="split='dev'"):
        opened.pipeline("dev", batch_size=2)


# Windows


def test_unshuffled_windows_cover_the_text_and_overlap_by_one():
    dataset = counting(10, context=4).pipeline("train", batch_size=2).dataset()
    assert windows(dataset) == [
        [0, 1, 2, 3, 4],
        [4, 5, 6, 7, 8],
        [8, 9, -1, -1, -1],
    ]
    assert dataset.element_spec["tokens"].shape.as_list() == [None, 5]
    assert dataset.element_spec["tokens"].dtype == tf.int32


@pytest.mark.parametrize("num_tokens", [5, 6, 8, 9, 10, 33, 41])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_token_but_the_first_is_a_target_once(num_tokens, batch_size):
    opened = counting(num_tokens, context=4)
    rows = np.array(windows(opened.pipeline("train", batch_size=batch_size).dataset()))
    targets = rows[:, 1:]
    assert np.all(rows[:, :-1][targets >= 0] == targets[targets >= 0] - 1)
    assert targets[targets >= 0].tolist() == list(range(1, num_tokens))
    assert np.all((rows >= 0).sum(axis=1) > 1)  # no window without a target


@pytest.mark.parametrize("num_tokens", [5, 7, 8, 11, 12, 13])
def test_shuffled_windows_are_full_and_as_many_in_each_epoch(num_tokens):
    opened = counting(num_tokens, context=4)
    made = opened.pipeline("train", batch_size=2, seed=1, shuffle=True)
    num_windows = max(num_tokens // 4 - 1, 1)
    assert made.num_rows == num_windows
    dataset = made.dataset()
    for _ in range(3):
        rows = np.array(sorted(windows(dataset)))
        offset = rows[0, 0]
        expected = offset + np.arange(num_windows)[:, None] * 4 + np.arange(5)
        assert rows.tolist() == expected.tolist() and rows.max() < num_tokens


@pytest.mark.parametrize(
    ("num_tokens", "num_offsets"),
    # One window of 4 + 1 tokens; from 12 on two of them, which take 9.
    [(5, 1), (6, 2), (11, 4), (12, 4)],
)
def test_windows_begin_at_each_offset_below_the_context(num_tokens, num_offsets):
    made = counting(num_tokens, context=4).pipeline("train", batch_size=2, shuffle=True)
    dataset = made.dataset()
    offsets = {min(row[0] for row in windows(dataset)) for _ in range(16)}
    assert offsets == set(range(num_offsets))


def test_windows_are_a_pure_function_of_seed_and_epoch():
    opened = counting(200, context=8)

    def read(seed, epoch, skip=0):
        made = opened.pipeline("train", batch_size=3, seed=seed, shuffle=True)
        made.epoch = epoch
        return windows(made.dataset(skip=skip))

    passes = {(seed, epoch): read(seed, epoch) for seed in (0, 7) for epoch in (0, 1)}
    assert len({str(rows) for rows in passes.values()}) == 4
    for (seed, epoch), rows in passes.items():
        assert read(seed, epoch) == rows
        assert read(seed, epoch, skip=2) == rows[6:]
        order = permutation(24, seed, pipeline.ORDER_STREAM, epoch)
        first = min(row[0] for row in rows)
        assert [row[0] for row in rows] == (first + 8 * order).tolist()
    counted = opened.pipeline("train", batch_size=3, seed=7, shuffle=True).dataset()
    assert [windows(counted), windows(counted)] == [passes[7, 0], passes[7, 1]]


def test_the_windows_of_a_seed_stay_what_they_are():
    # Recorded once: a change here changes the windows of every recorded run.
    made = counting(60, context=8).pipeline("train", batch_size=6, seed=3, shuffle=True)
    dataset = made.dataset()
    found = [[row[0] for row in windows(dataset)] for _ in range(3)]
    assert found == [
        [12, 44, 20, 36, 28, 4],
        [4, 12, 36, 20, 28, 44],
        [10, 26, 18, 42, 34, 2],
    ]


@pytest.mark.parametrize(("shuffle", "batch_size"), [(True, 4), (True, 5), (False, 5)])
def test_shares_of_ranks_fit_together(shuffle, batch_size):
    opened = counting(90, context=4)
    made = opened.pipeline("train", batch_size=batch_size, seed=1, shuffle=shuffle)
    made.epoch = 2
    whole = [batch["tokens"].numpy().tolist() for batch in made.dataset()]
    ranks = [
        [
            batch["tokens"].numpy().tolist()
            for batch in made.dataset(rank=rank, num_ranks=2)
        ]
        for rank in (0, 1)
    ]
    assert [first + second for first, second in zip(*ranks, strict=True)] == whole


def test_text_trains_shuffled_and_evaluates_every_target():
    source, options = ["abcdefghij" * 20], {"context": 4, "seed": 5}
    opened = open_text(source, context=4)
    training = text(source, batch_size=7, **options)
    made = opened.pipeline(
        "train", batch_size=7, seed=5, shuffle=True, drop_remainder=True
    )
    assert windows(training) == windows(made.dataset())
    assert made.steps_per_epoch == 6  # 180 tokens: 44 windows
    assert training.element_spec["tokens"].shape.as_list() == [7, 5]
    evaluation = text(source, split="validation", batch_size=2, **options)
    targets = np.array(windows(evaluation))[:, 1:]
    expected = opened.tokens("validation")[1:].tolist()
    assert targets[targets >= 0].tolist() == expected
    with pytest.raises(ValueError, match="Try batch_size=44 or less"):
        text(source, batch_size=45, **options)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=rf"\[0, 2\*\*63\). Received: seed={seed}"):
        counting(20).pipeline("train", batch_size=1, seed=seed, shuffle=True)


# Real data


def test_tiny_shakespeare_has_the_known_counts(test_data):
    path = test_data / "data" / "tiny_shakespeare" / "input.txt"
    opened = open_text(path)
    assert opened.tokenizer.vocab_size == 65
    # The first int(0.9 * 1,115,394) characters.
    assert opened.splits == {"train": 1_003_854, "validation": 111_540}
    whole = path.read_bytes().decode()
    assert len(whole) == 1_115_394 and joined(opened) == whole
    training = opened.pipeline("train", batch_size=64, shuffle=True)
    assert training.num_rows == 3920  # 1,003,854 // 256 - 1
    rows = np.array(windows(opened.pipeline("validation", batch_size=64).dataset()))
    targets = rows[:, 1:]
    expected = opened.tokens("validation")[1:]
    assert np.array_equal(targets[targets >= 0], expected)
