"""YAML that stands for more than it says, and errors of libraries that become the project's."""

import resource
import time

import numpy as np
import pytest
import yaml

from bmfl_lab.errors import BmflError, ConfigError, DataError, require_known, translated
from bmfl_lab.files import new_npy, read_json, read_table, read_yaml, save_npy


def read(folder, text):
    (folder / "spec.yaml").write_text(text, encoding="utf-8")
    return read_yaml(folder / "spec.yaml")


def laughs(levels, width, kind="[{}]"):
    lines = ["a0: &a0 lol"]
    for k in range(1, levels + 1):
        lines.append(f"a{k}: &a{k} " + kind.format(", ".join([f"*a{k - 1}"] * width)))
    return "\n".join(lines)


BOMBS = {
    "nine levels": laughs(9, 9),
    "few aliases": laughs(20, 2),
    "two wide levels": laughs(2, 400),
    "deep and thin": laughs(60, 2),
    "in mappings": laughs(9, 9).replace("[", "{x: [").replace("]", "]}"),
    "as merged keys": "a: &a {x: 1}\n" + laughs(12, 4),
    "a list in itself": "&a [*a]",
    "a mapping in itself": "&a {x: *a}",
    "in itself through another": "a: &a [&b [*a]]",
    "many values": "[" + "1, " * 100_001 + "]",
    "brackets": "[" * 5_000 + "]" * 5_000,
}


@pytest.mark.parametrize("case", BOMBS)
def test_yaml_that_grows_is_refused_at_once(case, tmp_path):
    start = time.process_time()
    with pytest.raises(DataError, match=r"values in spec\.yaml; .*write the values out"):
        read(tmp_path, BOMBS[case])
    assert time.process_time() - start < 30


@pytest.mark.parametrize(
    "text",
    [
        *("", "a: 1", "a: [1, 2, {b: c}]", "# nothing", "base: &b {x: 1}\nmore: {<<: *b, y: 2}"),
        *("a: &x [1, 2]\nb: *x\nc: *x", "- 2026-01-01\n- ~\n- true", laughs(3, 9)),
    ],
)
def test_other_yaml_is_read_as_before(text, tmp_path):
    assert read(tmp_path, text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    "text",
    [
        *("a: [1", "!!python/object/apply:os.system ['true']", "a: \x01", "a: 1\na: 2"),
        *("? [a]\n: 1", "a: 1\n---\nb: 2", "a: {b: 1, b: 1}", "a: 0x" + "F" * 9000),
        *("a: 1" + ":59" * 9000, "a: 1\n'a': 2", "a: *b", "a: &b 1\nb: &b 2\n<<: 3"),
    ],
)
def test_wrong_yaml_is_one_sentence(text, tmp_path):
    with pytest.raises(DataError, match=r"(?s)YAML in spec\.yaml; .*mend the line"):
        read(tmp_path, text)


def test_errors_of_libraries_keep_their_kind_and_text():
    with pytest.raises(ConfigError, match=r"a number; got ValueError: .*'x'.* To fix it: give one"):
        with translated(ValueError, expected="a number", remedy="give one", error=ConfigError):
            int("x")
    with pytest.raises(KeyError):
        with translated(ValueError, expected="a number", remedy="give one"):
            {}["x"]
    own = DataError("mine")  # a ValueError, too
    with pytest.raises(BmflError) as caught:
        with translated(ValueError, expected="a number", remedy="give one"):
            raise own
    assert caught.value is own


def test_known_names_pass_and_the_nearest_is_named():
    require_known("a", {"a": 1}, ConfigError, "a letter")
    with pytest.raises(ConfigError, match=r"a letter; got 'alpa'.* did you mean 'alpha'"):
        require_known("alpa", ("alpha", "beta"), ConfigError, "a letter")


def test_arrays_appear_whole_or_not_at_all(tmp_path):
    with new_npy(tmp_path / "a.npy", (2, 3)) as out:
        out[:] = 5
        assert not (tmp_path / "a.npy").exists()
    assert np.load(tmp_path / "a.npy").tolist() == [[5.0] * 3] * 2
    with pytest.raises(RuntimeError), new_npy(tmp_path / "b.npy", (2, 3)):
        raise RuntimeError
    save_npy(tmp_path / "c", np.arange(3))
    assert np.load(tmp_path / "c").tolist() == [0, 1, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "c"]


@pytest.mark.parametrize("shape", [(1 << 20, 4), (4, 1 << 20), (3 << 20,)])
def test_room_on_the_disk_is_reserved_before_the_map_is_written(tmp_path, shape):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(DataError, match=r"access to .*File too large .*ulimit"):
            with new_npy(tmp_path / "a.npy", shape):
                pytest.fail("the block ran without room")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


TABLES = {
    "a cell without an end": 'a,b\n"' + "x" * 200_000,
    "another encoding": b"a,b\ncaf\xe9,1\n",
    "UTF-16": "a,b\n1,2\n".encode("utf-16"),
    "nothing": "",
    "no column": "a\n1\n",
    "other columns": "x,y\n1,2\n",
    "a short line": "a,b\n1,2\n3\n",
    "other delimiters": "a;b\n1;2\n",
    "another case": "A,B\n1,2\n",
    "a picture": b"\x89PNG\r\n\x1a\n\x00\x00",
}


@pytest.mark.parametrize("case", TABLES)
def test_what_is_no_such_table_is_one_sentence(case, tmp_path):
    content = TABLES[case]
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=r"expected (columns a, b|a cell|a table).*t\.csv.*do it"):
        list(read_table(path, ["a", "b"], "do it"))


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_a_table_is_read_with_its_lines(start, tmp_path):
    (tmp_path / "t.csv").write_text(f'{start}b,a,c\n1,"2\n3",x\n4,5\n', encoding="utf-8")
    rows = [(n, row["a"], row["b"]) for n, row in read_table(tmp_path / "t.csv", ["a", "b"], "do")]
    assert rows == [(3, "2\n3", "1"), (4, "5", "4")]


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', '[{"b": {"c": 1, "d": 2, "c": 1}}]', '{"\\u0061": 1, "a": 1}']
)
def test_json_with_a_field_written_twice_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"'[ac]' is written twice.*delete the file"):
        read_json(tmp_path / "a.json")
