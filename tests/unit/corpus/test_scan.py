"""How the first pass shares out its work."""

import json

import pytest

from detect_ai.core.config import CorpusConfig, SourceConfig
from detect_ai.corpus import scan
from detect_ai.corpus.sources import ROW_SCHEMA

LINE = json.dumps({"text": "A text of some words.", "label": 0}) + "\n"


def folder(path, files, lines):
    path.mkdir()
    for number in range(files):
        (path / f"{number}.jsonl").write_text(LINE * lines)
    return SourceConfig(kind="jsonl", path=str(path), name=path.name)


def test_small_files_are_read_together_and_large_ones_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "PIECES_BYTES", 10 * len(LINE))
    corpus = CorpusConfig(sources=[folder(tmp_path / "small", 6, 4), folder(tmp_path / "large", 2, 30)])
    work, size = scan._work(corpus)
    assert [len(each) for each in work] == [2, 2, 2, 1, 1]
    assert size == 84 * len(LINE)


def test_evaluation_sets_are_read_behind_the_corpus_and_known_as_such(tmp_path):
    corpus = CorpusConfig(sources=[folder(tmp_path / "ours", 1, 1)], against=[folder(tmp_path / "theirs", 1, 1)])
    [[ours, theirs]] = scan._work(corpus)[0]
    assert [(piece.source.name, against) for piece, against in (ours, theirs)] == [("ours", False), ("theirs", True)]


@pytest.mark.parametrize(("enough", "sizes"), [(1, [7, 7, 7]), (10, [14, 7]), (14, [14, 7]), (100, [21])])
def test_rows_are_gathered_until_there_are_enough(tmp_path, enough, sizes):
    [pieces] = scan._work(CorpusConfig(sources=[folder(tmp_path / "ours", 3, 7)]))[0]
    tables = list(scan._gathered(pieces, enough))
    assert [len(table) for table in tables] == sizes
    assert tables[0].column_names == [*ROW_SCHEMA.names, "against"]


@pytest.mark.parametrize(("size", "rows"), [(0, 4_096), (10**12, 131_072), (128_000 * 50_000, 50_000)])
def test_a_scratch_file_grows_with_the_sources_within_bounds(size, rows):
    assert scan.scratch_rows(size) == rows


def test_memory_can_be_given_back_on_every_system(monkeypatch):
    scan.give_memory_back()
    monkeypatch.setattr(scan.ctypes, "CDLL", lambda _: object())  # no GNU C library
    scan.give_memory_back()
