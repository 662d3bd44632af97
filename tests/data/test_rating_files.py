"""Rating files: the rows of each format, and the line of each error."""

import gzip
import re
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

import kgen.data.named_ratings as named_ratings
import kgen.data.rating_files as rating_files
from kgen.data import open_ratings
from kgen.data.named_ratings import read_named_ratings
from kgen.data.rating_columns import Wanted
from kgen.data.rating_files import read_rating_arrays, read_rating_files

# One small set in each of the original forms: user, item, rating, time.
ROWS = [(1, 10, 5.0, 300), (1, 20, 3.0, 200), (2, 10, 4.0, 100), (3, 30, 1.0, 400)]
GENRES = [*("unknown", "Action", "Adventure", "Animation", "Children's"), "Comedy"]


def rows_of(table):
    """The rows with their original ids, in order."""
    columns = [table.user_ids[table.users], table.item_ids[table.items]]
    columns += [column for column in (table.ratings, table.times) if column is not None]
    return [tuple(row) for row in zip(*(c.tolist() for c in columns), strict=True)]


def text(separator, rows=ROWS, header=None, end="\n"):
    lines = [header] if header else []
    for row in rows:
        values = (f"{v:g}" if isinstance(v, float) else str(v) for v in row)
        lines.append(separator.join(values))
    return "".join(line + end for line in lines)


def ml_100k():
    items = [
        "10|Père, le (1995)|01-Jan-1995||http://x|0|0|0|1|0|1",
        "20|GoldenEye (1995)|01-Jan-1995||http://x|0|1|0|0|0|0",
        "30|unknown||||1|0|0|0|0|0",
    ]
    genres = "".join(f"{name}|{index}\n" for index, name in enumerate(GENRES)) + "\n"
    return {
        "u.data": text("\t").encode(),
        "u.item": "\n".join(items).encode("latin-1"),
        "u.genre": genres.encode(),
        "u.user": b"1|24|M|technician|85711\n",
        "u1.base": b"1\t10\t5\t300\n",
        "README": b"as published",
    }


def ml_1m():
    movies = (
        "10::Père, le (1995)::Animation|Comedy\n20::GoldenEye (1995)::Action\n"
        "30::unknown::unknown\n"
    )
    return {
        "ratings.dat": text("::").encode(),
        "movies.dat": movies.encode("latin-1"),
        "users.dat": b"1::F::1::10::48067\n",
    }


def ml_latest():
    movies = (
        'movieId,title,genres\r\n10,"Père, le (1995)",Animation|Comedy\r\n'
        "20,GoldenEye (1995),Action\r\n30,unknown,(no genres listed)\r\n"
    )
    header = "userId,movieId,rating,timestamp"
    return {
        "ratings.csv": text(",", header=header, end="\r\n").encode(),
        "movies.csv": movies.encode(),
        "tags.csv": b"userId,movieId,tag,timestamp\r\n1,10,fun,1\r\n",
        "links.csv": b"movieId,imdbId,tmdbId\r\n10,1,2\r\n",
    }


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_zip(path, files, top="set/"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(top + name, content)
    return path


EDITIONS = {
    "u.data": ml_100k(),
    "ratings.dat": ml_1m(),
    "ratings.csv": ml_latest(),
}


@pytest.mark.parametrize(
    "packing", ["folder", "zip", "flat zip", "windows zip", "file"]
)
@pytest.mark.parametrize("edition", EDITIONS)
def test_movielens_is_read_as_it_is_published(tmp_path, edition, packing):
    files = EDITIONS[edition]
    if packing.endswith("zip"):
        top = {"zip": "set/", "flat zip": "", "windows zip": "set\\"}[packing]
        path = write_zip(tmp_path / "set.zip", files, top)
    else:
        path = write(tmp_path / "set", files)
        path = path / edition if packing == "file" else path
    table = read_rating_files(path)
    assert table.name == (edition if packing == "file" else "set")
    assert rows_of(table) == ROWS
    assert table.user_ids.tolist() == [1, 2, 3]
    assert table.user_ids.dtype == table.item_ids.dtype == np.int64
    assert table.titles == ["Père, le (1995)", "GoldenEye (1995)", "unknown"]
    assert table.genres == [("Animation", "Comedy"), ("Action",), ()]
    assert table.notes == ()


def test_a_zip_is_read_where_it_is(tmp_path):
    path = write_zip(tmp_path / "set.zip", ml_latest())
    read_rating_files(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_with_pairs_in_parquet_and_movies_dat(tmp_path):
    folder = write(tmp_path / "ml", {"movies.dat": ml_1m()["movies.dat"]})
    pairs = {"userID": ["2", "1", "2"], "movieID": ["20", "9", "10"]}
    pq.write_table(pa.table(pairs), folder / "ratings.parquet")
    table = read_rating_files(folder)
    assert rows_of(table) == [(2, 20), (1, 9), (2, 10)]  # whole numbers, though text
    assert table.ratings is None and table.times is None
    assert table.titles == ["", "Père, le (1995)", "GoldenEye (1995)"]
    assert table.notes == ("items without a title: 1",)


@pytest.mark.parametrize(
    ("header", "columns", "unread"),
    [
        ("user,item,rating,time", (0, 1, 2, 3), None),
        ("UID,Movie_ID,Stars,Date", (0, 1, 2, 3), None),
        ('"User-ID";"ISBN";"Book-Rating"', (0, 1, 2), None),
        ("timestamp\titem_id\tuser_id", (3, 1, 0), None),
        ("product id,score,Unnamed: 0,user", (1, 2, 2, 0), "Unnamed: 0"),
        # The id has precedence over a possible title.
        ("movie,user_rating,movie_id,userId", (3, 2, 1, 0), "movie"),
    ],
)
def test_columns_are_found_by_their_names(tmp_path, header, columns, unread):
    separator = next(sign for sign in "\t;," if sign in header)
    rows = [tuple(row[column] for column in columns) for row in ROWS]
    path = tmp_path / "any.csv"
    path.write_text(text(separator, rows, header))
    table = read_rating_files(path)
    names = re.sub('[" ]', "", header).split(separator)
    expected = [row[:2] for row in ROWS]
    assert [row[:2] for row in rows_of(table)] == expected
    if any(name.lower() in ("rating", "stars", "score") for name in names):
        assert table.ratings.tolist() == [row[2] for row in ROWS]
    if {"time", "Date", "timestamp"} & set(names):
        assert table.times.tolist() == [row[3] for row in ROWS]
    notes = (f"not read: the columns {unread}",) if unread else ()
    assert table.notes == notes


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("separator", ["\t", ",", ";", "|", "::"])
def test_without_a_header_columns_are_found_by_position(tmp_path, separator, width):
    rows = [row[:width] for row in ROWS]
    path = tmp_path / "any.tsv"
    path.write_text(text(separator, rows))
    assert rows_of(read_rating_files(path)) == rows


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("separator", ["\t", ",", ";", "|", "::"])
@pytest.mark.parametrize("other", ["\t", ",", ";", "|", "::"])
def test_separators_in_quotes_separate_nothing(tmp_path, separator, other, header):
    titles = [f"Film{other} part {part}" for part in (1, 2)]
    lines = [f'{user}{separator}"{title}"' for user in (7, 8) for title in titles]
    if header:
        lines.insert(0, f'"user"{separator}"item"')
    path = tmp_path / "any.csv"
    path.write_text("\n".join(lines))
    expected = [(user, title) for user in (7, 8) for title in titles]
    assert rows_of(read_rating_files(path)) == expected


@pytest.mark.parametrize(
    ("lines", "rows"),
    [
        # Not in quotes: by the comma there are more numbers than by the semicolon.
        (["1,Film; part 1,5", "2,Film; part 2,4"], [(1, "Film; part 1", 5)]),
        # All lines have three values by the comma, the first alone by the semicolon.
        (["a;b,c;d,1", "a2,c2,2", "a3,c3,3"], [("a;b", "c;d", 1), ("a2", "c2", 2)]),
        # A header of known names decides.
        (["user;item;a,b", "1;2;x,y", "3;4;z,w"], [(1, 2), (3, 4)]),
        (["1|2|3", "4|5|6"], [(1, 2, 3), (4, 5, 6)]),
    ],
)
def test_the_separator_is_the_one_with_the_most_evidence(tmp_path, lines, rows):
    path = tmp_path / "any.csv"
    path.write_text("\n".join(lines))
    assert rows_of(read_rating_files(path))[: len(rows)] == rows


CALLED = Wanted(names=("customer", "article"))


def test_columns_may_be_called_by_any_name(tmp_path):
    path = tmp_path / "any.csv"
    path.write_text("note,article,stars,customer\nn,a1,5,c1\nn,a2,4,c1\n")
    expected = [("c1", "a1", 5), ("c1", "a2", 4)]
    table = read_rating_files(path, CALLED)
    assert rows_of(table) == expected
    assert table.notes == ("not read: the columns note",)
    columns = {"customer": ["c1", "c1"], "article": ["a1", "a2"], "stars": [5.0, 4.0]}
    pq.write_table(pa.table(columns), tmp_path / "any.parquet")
    assert rows_of(read_rating_files(tmp_path / "any.parquet", CALLED)) == expected
    assert rows_of(read_rating_arrays(columns, CALLED)) == expected
    # A given name goes before a usual one, and is the column of nothing else.
    path.write_text("user,score,item,customer\n1,2,3,4\n5,6,7,8\n")
    names = Wanted(names=("customer", "score"))
    assert rows_of(read_rating_files(path, names)) == [(4, 2), (8, 6)]


@pytest.mark.parametrize(
    ("lines", "names", "message"),
    [
        ("1,2,3", ("a", "b"), "must be called a, b. Received: 1, 2, 3 in .*line 1"),
        ("user,item", ("user", "item", "x"), "must be called user, item, x. Received"),
        ("a,b", ("a", "b"), "at least one"),
    ],
)
def test_columns_that_are_not_there_are_refused(tmp_path, lines, names, message):
    path = tmp_path / "any.csv"
    path.write_text(lines)
    with pytest.raises(ValueError, match=message):
        read_rating_files(path, Wanted(names=names))


def test_names_of_columns_need_columns_with_names():
    with pytest.raises(ValueError, match="`columns` names the columns of a file"):
        read_rating_arrays(([1], [2]), CALLED)
    with pytest.raises(ValueError, match="Received: columns='ab'"):
        open_ratings(([1], [2]), columns="ab")
    with pytest.raises(ValueError, match=r"Received: columns=\('a',\)"):
        open_ratings(([1], [2]), columns=("a",))


@pytest.mark.parametrize(
    ("first", "is_header"),
    [
        # No number, and no value that a row has too: a header of unknown names.
        ("customer,article", True),
        ("Ann,dune", True),
        ("Bob,dune", False),  # the user of another row
        ("Ann,it", False),  # the item of another row
        ("c3,a3", False),  # names of columns rarely have digits
    ],
)
def test_a_first_line_unlike_all_rows_is_refused_as_a_header(
    tmp_path, first, is_header
):
    path = tmp_path / "any.csv"
    path.write_text(f"{first}\nBob,it\nBob,emma\nEve,it\n")
    if is_header:
        with pytest.raises(
            ValueError, match=f"'{first}' in .*line 1, which looks.*`co"
        ):
            read_rating_files(path)
    else:
        assert rows_of(read_rating_files(path))[0] == tuple(first.split(","))


@pytest.mark.parametrize("header", [None, "user,item,rating,time"])
def test_text_may_be_gzipped(tmp_path, header):
    path = tmp_path / "any.csv.gz"
    path.write_bytes(gzip.compress(text(",", header=header).encode()))
    assert rows_of(read_rating_files(path)) == ROWS


def test_a_byte_order_mark_and_a_missing_last_line_end_make_no_difference(tmp_path):
    path = tmp_path / "any.csv"
    for header in (None, "user,item,rating,time"):
        content = text(",", header=header).rstrip("\n")
        path.write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert rows_of(read_rating_files(path)) == ROWS


def test_blocks_of_a_file_make_one_table(tmp_path, monkeypatch):
    monkeypatch.setattr(rating_files, "_BLOCK_BYTES", 64)
    rows = [(user, user * 7 % 31, float(user % 5), user) for user in range(200)]
    path = tmp_path / "any.csv"
    path.write_text(text(",", rows, "user,item,rating,time"))
    assert rows_of(read_rating_files(path)) == rows
    lines = text(",", rows, "user,item,rating,time").splitlines()
    for line in (2, 77, 201):
        broken = lines.copy()
        broken[line - 1] = "1,2,three,4"
        path.write_text("\n".join(broken))
        with pytest.raises(ValueError, match=f"'three' in .*any.csv, line {line}\\."):
            read_rating_files(path)


def test_ids_are_numbers_only_if_all_are_whole(tmp_path):
    path = tmp_path / "any.csv"
    path.write_text("7, 10 ,4\n 12,9b,5\n7,010,3\n")
    table = read_rating_files(path)
    assert table.user_ids.tolist() == [7, 12]
    # As text: in the order of the characters, and 010 is not 10.
    assert table.item_ids.tolist() == ["010", "10", "9b"]
    assert rows_of(table) == [(7, "10", 4), (12, "9b", 5), (7, "010", 3)]


def test_minus_one_is_an_id_like_any_other(tmp_path):
    (tmp_path / "any.csv").write_text("user,item\n-1,-1\n-1,0\n2,-1\n")
    table = read_rating_files(tmp_path / "any.csv")
    assert rows_of(table) == [(-1, -1), (-1, 0), (2, -1)]
    assert table.item_ids.tolist() == [-1, 0] and table.item_ids.dtype == np.int64


def test_numbers_with_leading_zeros_stay_text():
    table = read_rating_arrays((["01", "1"], ["-5", "0"]))
    assert table.user_ids.tolist() == ["01", "1"]
    assert table.item_ids.tolist() == [-5, 0]


def test_numbers_that_int64_cannot_hold_stay_text(tmp_path):
    path = tmp_path / "any.csv"
    path.write_text("1,123456789012345678\n2,99999999999999999999\n")
    ids = read_rating_files(path).item_ids
    assert ids.tolist() == ["123456789012345678", "99999999999999999999"]


def test_of_repeated_pairs_the_last_in_the_file_counts(tmp_path):
    path = tmp_path / "any.csv"
    path.write_text("1,10,5,900\n2,10,3,1\n1,10,2,100\n1,20,4,7\n1,10,1,200\n")
    table = read_rating_files(path)
    assert rows_of(table) == [(2, 10, 3, 1), (1, 20, 4, 7), (1, 10, 1, 200)]
    assert table.notes == ("repeated pairs, of which the last counts: 2",)


def test_of_many_repeated_pairs_the_last_counts():
    count = 1000  # more than a sort that is not stable leaves in order
    table = read_rating_arrays(([1, 2] * count, [5] * 2 * count, range(2 * count)))
    assert table.ratings.tolist() == [2 * count - 2, 2 * count - 1]


@pytest.mark.parametrize(
    ("dates", "microseconds"),
    [
        (("1970-01-02", "1970-01-01"), (86_400_000_000, 0)),
        (("1970-01-01 00:00:01", "1970-01-01"), (1_000_000, 0)),
        (("1970-01-01T00:00:01Z", "1970-01-01T00:00:00+01:00"), (1e6, -3.6e9)),
        (("17.5", "3"), (17.5, 3)),
        (("1970-01-01 00:00:01 UTC", "1970-01-01 00:00:00 GMT"), (1e6, 0)),
        (("1970-01-01T00:00:00.25Z", "1970-01-01 00:00:01+0000"), (250_000, 1e6)),
        (("1970-01-01T01:00:00,5+01", "1970-01-01T00:00Z"), (500_000, 0)),
        (("1970-01-01T00:00:00.123456789", "1970-01-02"), (123_456, 86.4e9)),
        (("19700101T000001Z", "1970-01-01T00:00:02z"), (1e6, 2e6)),
        (("1970-W01-5", "1970-01-01T00:00:00"), (86.4e9, 0)),
        (("1969-12-31T23:59:59-00:30", "1970-01-01T00:00:00Z"), (1.799e9, 0)),
    ],
)
def test_times_are_numbers_or_dates(tmp_path, dates, microseconds):
    path = tmp_path / "any.csv"
    path.write_text("".join(f'1,{i},4,"{date}"\n' for i, date in enumerate(dates)))
    assert read_rating_files(path).times.tolist() == list(microseconds)


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("user,item,rating\n1,2,3\n1,3\n", 3, "must have 3 values.*'1,3'"),
        ("user,item,rating\n1,2,3\n1,3,4,5\n", 3, "must have 3 values"),
        ("1,2,3\n1,,4\n", 2, "must have the id of its item. Received: none"),
        ("1,2,3\n  ,3,4\n", 2, "must have the id of its user"),
        ("1,2,3\n,3\n", 2, "must have 3 values"),
        ("1,2,3\n1,3,nan\n", 2, "rating must be a finite number.*'nan'"),
        ("1,2,3\n1,3,inf\n", 2, "rating must be a finite number.*'inf'"),
        ("1,2,3\n1,3,\n", 2, "rating must be a finite number.*''"),
        ("1,2,3\n1,3,good\n", 2, "rating must be a finite number.*'good'"),
        ("1,2,3\n\n\n1,3,good\n", 4, "'good'"),  # empty lines count
        ("1,2,3\r\n\r\n1,3,x\r\n", 3, "'x'"),
        ("\nuser,item,rating\n\n1,3,x\n", 4, "'x'"),
        ("1,2,3,9\n1,3,3,\n", 2, "time must be a number.*, and none may be missing"),
        ("1,2,3,9\n1,3,3,2020-01-01\n", 2, "time must be a number"),
        (
            "1,2,3,2020-01-01\n1,3,3,17\n",
            2,
            "time must be a number, or each an ISO 8601 date",
        ),
        ("1::2::3\n1::3::4::5\n", 2, "must have 3 values, separated by '::'"),
        ("1::2::3\n1::3:4:5\n", 2, "between '::'"),
        ("1::2::3\n1:3::4:\n", 2, "between '::'"),
        # A quotation mark without a partner, and one that finds one too late.
        ('1,2,3\n1,"3,4\n', 2, "must have 3 values"),
        ('1,2,3\n1,"3,4\n1,4,5\n1,5",4\n', 2, "must be on one line"),
        ('1,2,3\n1,"\n\n",4\n1,4,5\n', 2, "must be on one line"),
        ('user,item,x\n1,2,"3\n1,4,"\n', 2, "must be on one line"),
        ("u1,i1\n,i2\n", 2, "the id of its user"),
        ("7;1;5\n8,2,4\n9;3;3\n", 2, "must have 3 values, separated by ';'"),
        ("1,2,3,2020-01-01T00Z\n1,3,3,2020-01-01\n", 2, "all or none with a zone"),
        ("1,2,3,2020-01-01\n1,3,3,2020-01-01 UTC\n", 2, "'2020-01-01 UTC'"),
        ("1,2,3,yesterday\n1,3,3,4\n", 1, "or each an ISO 8601 date.*'yesterday'"),
    ],
)
def test_a_broken_line_is_named(tmp_path, content, line, message):
    path = tmp_path / "any.csv"
    path.write_bytes(content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        read_rating_files(path)
    assert str(caught.value).endswith(f"in {path}, line {line}.")


def test_a_line_is_named_although_a_value_before_it_is_on_two_lines(tmp_path):
    path = tmp_path / "any.csv"
    path.write_text('user,item,x\n1,2,"two\nlines"\n3,4,5\n6,7\n')
    with pytest.raises(ValueError, match="'6,7' in .*any.csv, line 5"):
        read_rating_files(path)


def test_ids_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "any.csv"
    path.write_bytes("1,a\n1,é\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"must be UTF-8 text.*line 2\."):
        read_rating_files(path)


def test_a_line_without_any_value_is_left_out(tmp_path):
    path = tmp_path / "any.csv"
    path.write_text("1,2,3\n\n4,5,1\n,,\n\n")
    assert rows_of(read_rating_files(path)) == [(1, 2, 3), (4, 5, 1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "at least one .user, item. pair. Received: none in .*any.csv"),
        ("\n\n", "at least one"),
        ("user,item", "at least one"),
        ("user,item\n\n", "at least one"),
        ("reader,volume,points\n1,2,3\n", "header must name.*'reader,volume,points'"),
        ("user,volume\na,b\n", "header must name.*'user,volume'.*line 1"),
        ("1,2,3,4,5\n", "two to four columns.*Received: 5 in .*line 1"),
        ("12\n13\n", "separated by a comma.*'12' in .*line 1"),
        ('{"user": 1, "item": 2}\n', "separated by a comma"),
        ("1,2\0\n", "must be text"),
    ],
)
def test_a_file_without_a_table_is_refused(tmp_path, content, message):
    path = tmp_path / "any.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_rating_files(path)


def test_a_first_line_with_a_number_is_no_header(tmp_path):
    path = tmp_path / "any.csv"
    path.write_text("276725,034545104X,0\n276726,0155061224,5\n")
    assert rows_of(read_rating_files(path)) == [
        (276725, "034545104X", 0),
        (276726, "0155061224", 5),
    ]


def test_columns_are_read_only_where_they_are_used(tmp_path):
    columns = {
        "user": np.repeat(np.arange(6), 3),
        "item": np.tile(np.arange(3), 6),
        "stars": ["good"] * 18,
        "date": ["yesterday"] * 18,
    }
    lines = [",".join(columns), *map("{},{},{},{}".format, *columns.values())]
    (tmp_path / "any.csv").write_text("\n".join(lines))
    (tmp_path / "bare.csv").write_text("\n".join(lines[1:]))
    pq.write_table(pa.table(columns), tmp_path / "any.parquet")
    for source in (columns, *sorted(tmp_path.iterdir())):
        options = {"min_items": 1, "min_rating": None}
        opened = open_ratings(source, **options)
        assert opened.num_pairs == 18 and opened.notes == ()
        with pytest.raises(ValueError, match="Each rating must be.*'good'"):
            open_ratings(source, min_items=1)
        with pytest.raises(ValueError, match="Each time must be.*'yesterday'"):
            open_ratings(source, split_strategy="leave-one-out", **options)


# Parquet


def test_parquet_is_read_by_the_names_of_its_columns(tmp_path):
    users, items, ratings, times = zip(*ROWS, strict=True)
    columns = {
        "timestamp": pa.array(times, pa.timestamp("s")),
        "note": ["a", "b", "c", "d"],
        "Item_ID": pa.array([f"i{item}" for item in items]).dictionary_encode(),
        "stars": pa.array(ratings, pa.float32()),
        "USER": pa.array(users, pa.int16()),
    }
    path = tmp_path / "any.parquet"
    pq.write_table(pa.table(columns), path)
    table = read_rating_files(path)
    assert rows_of(table) == [(u, f"i{i}", r, t * 10**6) for u, i, r, t in ROWS]
    assert table.notes == ("not read: the columns note",)
    archive = write_zip(tmp_path / "any.zip", {"a.parquet": path.read_bytes()})
    assert rows_of(read_rating_files(archive)) == rows_of(table)


def test_a_damaged_parquet_is_named(tmp_path):
    path = tmp_path / "any.parquet"
    numbers = np.random.default_rng(0).integers(0, 10**9, (2, 20_000))
    pq.write_table(pa.table({"user": numbers[0], "item": numbers[1]}), path)
    content = bytearray(path.read_bytes())
    content[1000:2000] = bytes(1000)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"Cannot read .*any\.parquet: it is damaged"):
        read_rating_files(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": [1, None], "item": [1, 2]}, "id of its user.*row 2"),
        ({"user": [1, 2], "item": ["a", ""]}, "id of its item.*row 2"),
        ({"user": [1, 2], "item": [1, 2], "rating": [1.0, None]}, "None in .*row 2"),
        ({"user": [1, 2], "item": [1, 2], "rating": [1.0, np.nan]}, "nan in .*row 2"),
        ({"user": [1, 2], "item": [0.5, 2.0]}, "text or a whole number.*double"),
        ({"a": [1, 2], "b": [1, 2]}, "must be called user.*Received: a, b in"),
        ({"user": [1, 2], "item": [1, 2], "time": ["x", "1"]}, "time must be.*row 1"),
    ],
)
def test_a_broken_row_of_parquet_is_named(tmp_path, monkeypatch, columns, message):
    monkeypatch.setattr(rating_files, "_ROWS_PER_READ", 1)
    path = tmp_path / "any.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match=message):
        read_rating_files(path)


# Folders and zips


def test_a_folder_with_two_tables_is_refused(tmp_path):
    write(tmp_path, {"ratings.csv": b"1,2\n", "ratings.dat": b"1::2\n"})
    with pytest.raises(ValueError, match=r"one table.*ratings.csv, ratings.dat in"):
        read_rating_files(tmp_path)
    write(tmp_path / "other", {"a.csv": b"1,2\n", "b.tsv": b"1\t2\n"})
    with pytest.raises(ValueError, match=r"one table.*a.csv, b.tsv in"):
        read_rating_files(tmp_path / "other")


def test_the_only_table_of_a_folder_is_read_whatever_its_name(tmp_path):
    write(tmp_path, {"likes.csv": b"1,2\n", "README": b"1,2\n", ".x.csv": b""})
    assert rows_of(read_rating_files(tmp_path)) == [(1, 2)]


def test_a_folder_without_a_table_is_refused(tmp_path):
    write(tmp_path, {"README": b"1,2\n"})
    with pytest.raises(FileNotFoundError, match="no table of ratings in"):
        read_rating_files(tmp_path)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.parquet", "a.zip"])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"1,2,3\n4,5,6\n7,8,9\n")
    with pytest.raises(ValueError, match=f"Cannot read .*{name}.*Copy or download"):
        read_rating_files(tmp_path / name)


def test_a_file_that_was_cut_is_refused(tmp_path):
    rows = [(user, 2, 3.0) for user in range(30_000)]
    content = gzip.compress(text(",", rows).encode())
    (tmp_path / "a.csv.gz").write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"Cannot read .*a.csv.gz: it is damaged"):
        read_rating_files(tmp_path / "a.csv.gz")


def test_a_zip_that_was_changed_is_refused(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ratings.csv", "1,2,3\n4,5,6\n")
    path.write_bytes(path.read_bytes().replace(b"4,5,6", b"4,5,7"))
    with pytest.raises(ValueError, match=r"Cannot read .*set.zip/ratings.csv: .*CRC"):
        read_rating_files(path)


def test_damaged_titles_of_a_zip_are_named(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in ml_latest().items():
            archive.writestr(name, content)
    path.write_bytes(path.read_bytes().replace(b"GoldenEye", b"GildenEye"))
    with pytest.raises(ValueError, match=r"Cannot read .*set.zip/movies.csv: .*CRC"):
        read_rating_files(path)


@pytest.mark.parametrize(
    ("edition", "name", "content", "message"),
    [
        ("u.data", "u.item", b"10|a|b|c|d|0|1\n", "each of the 6 lines.*line 1"),
        ("ratings.dat", "movies.dat", b"10::a::b\n20::c\n", "'20::c' in .*line 2"),
        ("ratings.csv", "movies.csv", b"a,b\n10,c\n", "must name the columns"),
        ("ratings.csv", "movies.csv", b"movieId,title\n1,a\n2\n", "2 values.*line 3"),
    ],
)
def test_a_broken_line_of_titles_is_named(tmp_path, edition, name, content, message):
    write(tmp_path, EDITIONS[edition] | {name: content})
    with pytest.raises(ValueError, match=message):
        read_rating_files(tmp_path)


# Arrays


@pytest.mark.parametrize(
    "source",
    [
        ([1, 2], ["x", "y"], [5, 3], [7, 8]),
        (np.array([1, 2], np.int32), np.array(["x", "y"]), np.float32([5, 3]), [7, 8]),
        {"users": [1, 2], "items": ["x", "y"], "ratings": [5, 3], "times": [7, 8]},
        {
            "date": [7, 8],
            "movie_id": ["x", "y"],
            "user_id": ["1", "2"],
            "score": [5, 3],
        },
    ],
)
def test_arrays_are_read_as_columns(source):
    assert rows_of(read_rating_arrays(source)) == [(1, "x", 5, 7), (2, "y", 3, 8)]


def test_times_of_arrays_may_be_dates_and_ratings_may_be_missing():
    dates = np.array(["1970-01-01", "1970-01-02"], "datetime64[D]")
    table = read_rating_arrays(([1, 2], [3, 4], None, dates))
    assert table.ratings is None
    assert table.times.tolist() == [0, 86_400_000_000]


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (([1, 2], [3]), ValueError, r"one length. Received: shapes \(2,\) \(user\)"),
        (([[1, 2]], [[3, 4]]), ValueError, "one-dimensional"),
        (([1, None], ["a", "b"]), ValueError, "id of its user.*`source`, row 2"),
        (([1, 2], ["a", "b"], [1, np.nan]), ValueError, "finite number.*row 2"),
        (([1.5, 2], ["a", "b"]), ValueError, "text or a whole number"),
        (([], []), ValueError, "at least one|text or a whole number"),
        ({"a": [1], "b": [2]}, ValueError, "Received: a, b in `source`"),
        (([1],), TypeError, "must be a name, a path, a tuple"),
        (None, TypeError, "Received: NoneType"),
        (7, TypeError, "Received: int"),
    ],
)
def test_arrays_that_are_no_columns_are_refused(source, error, message):
    with pytest.raises(error, match=message):
        read_rating_arrays(source)


# Names of tensorflow-datasets


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A movielens of tensorflow-datasets with six ratings, and two other sets."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("prepared")
    genres = tfds.builder("movielens/100k-ratings").info.features["movie_genres"]
    rows = {
        "user_id": ["2", "1", "2", "3", "3", "1"],
        "movie_id": ["9", "9", "10", "9", "10", "10"],
        "user_rating": np.float32([5, 4, 3, 2, 1, 4]),
        "timestamp": np.arange(6, dtype=np.int64),
        "movie_title": ["Heat (1995)"] * 2 + ["été", "Heat (1995)", "été", "été"],
        "movie_genres": tf.ragged.constant(
            [[0, 15]] * 2 + [[17], [0, 15], [17], [17]], dtype=tf.int64
        ),
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name="movielens",
        config="100k-ratings",
        version="0.1.1",
        features=tfds.features.FeaturesDict(
            {
                "user_id": np.str_,
                "movie_id": np.str_,
                "user_rating": np.float32,
                "timestamp": np.int64,
                "movie_title": np.str_,
                "movie_genres": genres,
            }
        ),
        split_datasets={"train": tf.data.Dataset.from_tensor_slices(rows)},
        data_dir=folder,
        disable_shuffling=True,
    )
    likes = {"uid": [1, 2, 1, 2], "item": [b"a", b"b", b"b", b"a"]}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="likes",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"uid": np.int64, "item": np.str_}),
        split_datasets={
            split: tf.data.Dataset.from_tensor_slices(likes)
            for split in ("train", "test")
        },
        data_dir=folder,
        disable_shuffling=True,
    )
    holes = {"user": [1, 2, 3], "item": [4, 5, 6], "stars": [1.0, 2.0, np.nan]}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="holes",
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {"user": np.int64, "item": np.int64, "stars": np.float32}
        ),
        split_datasets={"train": tf.data.Dataset.from_tensor_slices(holes)},
        data_dir=folder,
        disable_shuffling=True,
    )
    return folder


def test_a_broken_row_of_a_name_is_named(prepared, monkeypatch):
    monkeypatch.setattr(named_ratings, "_CHUNK_ROWS", 2)
    with pytest.raises(ValueError, match=r"Received: nan in holes, row 3\."):
        read_named_ratings("holes", prepared, False)


def test_movielens_is_read_by_its_name(prepared):
    opened = open_ratings(
        "movielens/100k-ratings",
        data_dir=prepared,
        download=False,
        min_items=1,
        min_rating=None,
    )
    assert opened.user_ids.tolist() == [1, 2, 3]
    assert opened.item_ids.tolist() == [9, 10]
    assert opened.item_titles == ["Heat (1995)", "été"]
    assert opened.item_genres == [("Action", "Sci-Fi"), ()]  # 17 is "Unknown"
    assert opened.num_pairs == 6
    table = read_named_ratings("movielens/100k-ratings", prepared, False)
    assert rows_of(table)[:2] == [(2, 9, 5, 0), (1, 9, 4, 1)]


def test_the_splits_of_a_name_are_read_as_one(prepared):
    table = read_named_ratings("likes", prepared, False)
    assert len(table.users) == 4
    named = Wanted(names=("item", "uid"))
    swapped = read_named_ratings("likes", prepared, False, named)
    assert set(rows_of(swapped)) == {("a", 1), ("b", 2), ("b", 1), ("a", 2)}
    assert table.ratings is None and table.titles is None
    assert table.notes == (
        "read as one: its 2 splits",
        "repeated pairs, of which the last counts: 4",
    )


def test_a_name_that_cannot_be_read_is_explained(tmp_path):
    options = {"data_dir": tmp_path, "download": False}
    with pytest.raises(FileNotFoundError, match="as in a dry run.*`data_dir`"):
        open_ratings("movielens/1m-ratings", **options)
    with pytest.raises(ValueError, match="Did you mean movielens"):
        open_ratings("movielenz", **options)
    with pytest.raises(ValueError, match="'movielens/100k-rating'.*not found"):
        open_ratings("movielens/100k-rating", **options)
    with pytest.raises(ValueError, match="must be called user.*image, label in mnist"):
        open_ratings("mnist", **options)
    with pytest.raises(FileNotFoundError, match=r"no file or folder no/ratings.csv"):
        open_ratings("no/ratings.csv", **options)
    assert not list(tmp_path.iterdir())


# Real files


@pytest.mark.parametrize(
    ("name", "rows", "users", "items", "first"),
    [
        ("ml-100k.zip", 100_000, 943, 1682, (196, 242, 3, 881250949)),
        ("ml-latest-small.zip", 100_836, 610, 9724, (1, 1, 4, 964982703)),
        ("ml-1m-partial", 1_000_209, 6040, 3706, None),
    ],
)
def test_real_movielens(test_data, name, rows, users, items, first):
    # Counts as published; 18 of the 9,742 movies of latest-small are not rated.
    table = read_rating_files(test_data / "data" / "movielens" / name)
    assert len(table.users) == rows
    assert (len(table.user_ids), len(table.item_ids)) == (users, items)
    assert table.titles[0] == "Toy Story (1995)"
    assert "" not in table.titles
    assert table.genres[0][-1] in ("Comedy", "Fantasy")
    assert table.notes == ()
    assert first is None or rows_of(table)[0] == first
