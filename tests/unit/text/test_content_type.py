from __future__ import annotations

import csv
import io
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.text.content import content_report
from detect_ai.text.content_type import TYPES, content_types
from detect_ai.text.normalize import normalise

ESSAY = (
    "When I was nine, my grandfather taught me to mend nets; it took me two winters, and I was never good at it. The "
    "knots were small (he tied them without looking), and my hands were cold.\n\nWhat I learned instead was patience: "
    "to sit with a thing that does not work, and to begin again. I have thought of him often since, in offices and in "
    "laboratories, wherever something was torn and somebody had to sit down with it.\n"
)
DIALOGUE = (
    "“I told you that he would come back before the winter,” she said, and put the kettle on the stove. He looked at "
    "the window for a while and did not answer her, because there was nothing to say about the boat or the money or "
    "the years between.\n\n“You could at least take off your coat and sit down with us,” said the old man. He did, in "
    "the end, and the dog lay down upon his feet as if he had never been away at all.\n"
)
NEWS = (
    'The mayor said on Monday that the bridge would open in May. "We have waited for this day for eleven long years," '
    "she told reporters at the site. Residents of the north bank, who have used a ferry since the flood of 2013, were "
    "less sure of it. The work has cost $41 million so far, about 30% more than planned (a report is due in June).\n"
)
POEM = (
    "The tide goes out; the lamps are lit;\n    the gulls fall silent one by one;\n"
    "and still beside the quay they sit,\n    the men whose working day is done;\n\n"
    "they do not speak; they watch the sea,\n    its slow and heavy rise and fall;\n"
    "they wait for what will never be,\n    and no one comes for them at all.\n"
)
BULLETS = "".join(
    f"{mark} The {word} report says that the work should be done before the winter comes to the valley.\n"
    for mark in ("-", "*", "1.", "(a)", "\t•", "    -")
    for word in ("first", "second")
)
PYTHON = '''"""Count the words of files.

The counts are printed in the order of the files that were named on the command line, the longest first.
"""

import sys


def count(path: Path) -> int:
    """Number of words in a file, separated by white space."""
    # an empty file has none
    if not path.exists():
        return 0
    else:
        text = path.read_text()
    return len(text.split())


for name in sys.argv[1:]:
    print(name, count(Path(name)))
'''
JAVASCRIPT = """// what a button does
const button = document.querySelector("#go");
let clicks = 0;

export default function listen(target) {
  target.addEventListener("click", (event) => {
    clicks += 1;
    if (clicks > 3) {
      return;
    }
    console.log(`clicked ${clicks} times`);
  });
}
"""
SQL = """SELECT customers.name, orders.total,
  orders.created
FROM customers
LEFT JOIN orders ON orders.customer_id = customers.id
WHERE orders.total > 100
  AND customers.country = 'FI'
ORDER BY orders.total DESC
LIMIT 20;
"""
JSON = json.dumps({"name": "sea", "size": [1, 2, 3], "notes": {"first": "The sea is large.", "on": True}}, indent=2)
C = """#include <stdio.h>

int main(void) {
    int i = 0;
    while (i < 10) {
        printf("%d\\n", i++);
    }
    return 0;
}
"""
SHELL = """$ cd project
$ git status
On branch main
$ python -m venv .venv && . .venv/bin/activate
$ pip install -e .
"""
PAGE = f"<html>\n<body>\n{''.join(f'<p>{part}</p>{chr(10)}' for part in ESSAY.splitlines()[::2])}\n</body>\n</html>\n"
DOCSTRING = f'''def mend(net):
    """Mend a net.

{ESSAY}    """
    return net.mended()
'''
CODE = {"python": PYTHON, "js": JAVASCRIPT, "sql": SQL, "json": JSON, "c": C, "shell": SHELL}
LOG = "".join(f"2024-01-{n} 12:00:{n},5 INFO pool - the task was done and the queue is empty\n" for n in range(10, 20))
CODE |= {"log": LOG, "sql in capitals": SQL.upper(), "page": PAGE, "docstring": DOCSTRING}
MARKDOWN = (
    f"# Mending\n\n{ESSAY}\nCall it so:\n\n```python\nmend(net, winters=2)\n```\n\n{ESSAY}\n- [x] done\n- [ ] open\n"
)
ROWS = [["name", "year", "city"], *[[f"Person {n}", str(1950 + n), f"Town of {n}"] for n in range(12)]]


def as_csv(delimiter: str) -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(ROWS)
    return file.getvalue()


TABLES = {
    "csv": as_csv(","),
    "semicolons": as_csv(";"),
    "tabs": as_csv("\t"),
    "blanks after commas": "\n".join(", ".join(row) for row in ROWS),
    "markdown": "\n".join(f"| {' | '.join(row)} |" for row in [ROWS[0], ["---"] * 3, *ROWS[1:]]),
    "columns": "\n".join("".join(f"{cell:<20}" for cell in row) for row in ROWS),
    "numbers": "\n".join(f"{n} {n * 1.5} {n * n}" for n in range(30)),
    "framed": "+------+------+\n| a    | b    |\n+------+------+\n| 1    | 2    |\n+------+------+\n",
}
MAIL = "On Monday, Ann wrote:\n" + "".join(
    f"> The {word} part of the plan is what I wanted to ask you about before\n> we meet with the others.\n>\n"
    for word in ("first", "second", "third")
)
PROSE = {
    "essay": ESSAY,
    "dialogue": DIALOGUE,
    "straight dialogue": DIALOGUE.replace("“", '"').replace("”", '"'),
    "news": NEWS,
    "poem": POEM,
    "bullets": BULLETS,
    "markdown": MARKDOWN,
    "capitals": ESSAY.upper(),
    "select in capitals": "SELECT THE BEST ANSWER FROM THE LIST BELOW AND WRITE IT DOWN.\n" * 5,
    "no line breaks": " ".join((ESSAY + NEWS + DIALOGUE).split()),
    "answer to a mail": MAIL + "\n" + ESSAY + NEWS,
    "essay in quotes": f'"{" ".join(ESSAY.split())}"',
    "essay in a fence": f"```\n{ESSAY}```\n",
    "poem in a fence": f"```\n{POEM}```\n",
    "essay in a fence of markdown": f"```markdown\n{ESSAY}{BULLETS}```\n",
    "typewriter": "He came.  He saw it.  He went.\nShe stayed.  She slept.  She woke.\n" * 4,
    "careless commas": "I wake up at six,i eat bread,then i go to the school,it is far,i walk with my brother.\n" * 3,
    "scene breaks": f"{DIALOGUE}\n~~~\n\n{POEM}\n~~~\n\n{ESSAY}\n***\n\n____\n\n{NEWS}",
    "formulas": "For $p>2$ let $G_n=\\langle a,b\\rangle$ act on $X_n\\subset\\mathbb{R}^{2n}$ and let $Y_n=X_n/G_n$ "
    "be compact. We show that $H^i(Y_n)=0$ for all $i>n$, and then that $\\pi_1(Y_n)=G_n$ and "
    "$\\chi(Y_n)=\\chi(X_n)/p^{2n}$.",
    "smileys": "see you there :) <3\nI will be late =) but I bring the cake and the drinks for all\n" * 4,
    "numbered questions": "\n".join(
        f"{n}. How did the war of {1900 + n} change the way people lived?" for n in range(9)
    ),
    "references to sources": f"{ESSAY}\nhttps://example.org/a_b?c=d&e=f\n[1] A. Writer, The Nets, 1990.\n",
    "absolute values": "For matrices $A$ and $B$ we prove that $||| f(A)+f(B) ||| \\ge ||| f(A+B) |||$ and $||| "
    "g(A)+g(B) ||| \\le ||| g(A+B) |||$, for any norm that is invariant and for each function that is concave and not "
    "negative.",
    "empty": "",
    "blank": " \n\t\u3000\n",
}


def content_fractions(text: str) -> dict[str, float]:
    types, is_visible = content_types(text)
    assert len(types) == len(is_visible) == len(text)
    counts = [int((types[is_visible] == kind).sum()) for kind in range(len(TYPES))]
    return {kind: count / max(1, sum(counts)) for kind, count in zip(TYPES, counts, strict=True)}


def reasons(text: str) -> list[str]:
    return content_report(text, normalise(text), "").reasons


@pytest.mark.parametrize("name", PROSE)
def test_prose_is_prose(name: str) -> None:
    assert reasons(PROSE[name]) == []
    assert reasons(PROSE[name].replace("\n", "\r\n")) == []


@pytest.mark.parametrize("name", CODE)
def test_code_is_code_with_and_without_a_fence(name: str) -> None:
    assert reasons(CODE[name]) == ["mostly_code"]
    assert content_fractions(CODE[name])["code"] > 0.85
    assert reasons(CODE[name].replace("\n", "\r\n")) == ["mostly_code"]
    assert content_fractions(f"Look:\n\n```{name}\n{CODE[name]}\n```\n")["code"] > 0.9
    assert reasons(f"{ESSAY}{NEWS}{DIALOGUE}{BULLETS}\n```\n{CODE[name][:200]}\n```\n{ESSAY}") == []


def test_code_without_line_breaks_is_code() -> None:
    for text in ("function f(a){return a+1}var x=f(2);" * 40, json.dumps([{"a": "b " * 200}])):
        assert reasons(text) == ["mostly_code"]


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_tables(name: str) -> None:
    fractions = content_fractions(TABLES[name])
    assert reasons(TABLES[name]) == ["mostly_tables"]
    assert fractions["tables"] > 0.9
    assert reasons(f"{ESSAY}\n{TABLES[name][:200]}\n{ESSAY}") == []


def test_quoted_mail_is_quotation() -> None:
    assert reasons(MAIL) == ["mostly_quotations"]
    assert 0.3 < content_fractions(MAIL + "\n" + ESSAY)["quotations"] < 0.6


@pytest.mark.parametrize(("left", "right"), ['""', "“”", "«»", "„“"])
def test_only_block_quotations_count(left: str, right: str) -> None:
    inside = " ".join(ESSAY.split()[:40])
    text = f"Then he said to them: {left}{inside}{right}, and went."
    fraction = len(f"{left}{inside}{right}".replace(" ", "")) / len(text.replace(" ", ""))
    assert content_fractions(text)["quotations"] == pytest.approx(fraction)
    assert content_fractions(text.replace("When I", "I"))["quotations"] == 0
    assert content_fractions(f"Then he said: {left}{inside}, and\n\nwent{right}, and more.")["quotations"] == 0
    assert reasons(f"He said: {left}{' '.join(ESSAY.split())}{right}, and went.") == ["mostly_quotations"]


def test_unclosed_quotes_quote_nothing() -> None:
    assert content_fractions(f'He said: "{" ".join(ESSAY.split())}')["quotations"] == 0


def test_quotations_have_a_higher_limit() -> None:
    said = f"“{' '.join(ESSAY.split())}”"
    rest = " ".join((NEWS.replace('"', "") + BULLETS).split())
    fractions = {cut: content_fractions(f"He said: {said} {rest[:cut]}")["quotations"] for cut in (180, 380, 600)}
    assert fractions[180] > 0.6 > fractions[380] > 0.5 > fractions[600]
    assert reasons(f"He said: {said} {rest[:180]}") == ["mostly_quotations"]
    assert reasons(f"He said: {said} {rest[:380]}") == []


def test_code_does_not_count_as_quotation() -> None:
    text = f'```python\n> x = 1\nprint("{" ".join(ESSAY.split())}")\n```\n'
    assert content_fractions(text)["code"] == 1


def test_links_and_references_are_not_prose() -> None:
    links = "".join(f"- [page {n}](https://example.org/page/{n})\nhttps://example.org/{n}\n" for n in range(9))
    references = "".join(f"[{n}] A. Writer and B. Other, On the mending of nets, 1990.\n" for n in range(9))
    assert content_fractions(links)["links"] > 0.8
    assert content_fractions(references)["references"] == 1
    assert reasons(links) == reasons(references) == ["not_prose"]
    assert reasons(ESSAY + NEWS + links[:200] + references[:200]) == []


@pytest.mark.parametrize(
    "reference",
    [
        "Writer, A., & Other, B. (1990). On the mending of nets. Journal of Nets, 3(2), 10-12.",
        "3. Writer AB, Other C. On the mending of nets. J Nets. 1990;3(2):10-2.",
        "Writer, Ann. “On the Mending of Nets.” Journal of Nets, vol. 3, no. 2, 1990, pp. 10-12.",
        "Writer, A., & Other, B. (1990). On the mending of nets, and of the ropes\nthat hold them. Journal of Nets, "
        "3(2).",
    ],
)
def test_a_bibliography_has_three_entries(reference: str) -> None:
    assert content_fractions(f"{ESSAY}References\n" + f"{reference}\n" * 2)["references"] == 0
    assert content_fractions(f"{reference}\n\n" * 3)["references"] == 1


def test_kinds_are_added_up() -> None:
    quoted = "".join(f"> {line}\n" for line in ESSAY.splitlines() if line)
    links = "".join(f"https://example.org/page/{n}/of/the/report\n" for n in range(16))
    text = f"{PYTHON}\n{quoted}\n{links}\n{TABLES['csv']}\nOne line of prose stands at the end of it all.\n"
    assert max(content_fractions(text).values()) < 0.5
    assert reasons(text) == ["not_prose"]


@given(
    st.lists(st.sampled_from([*PROSE.values(), *CODE.values(), *TABLES.values(), MAIL]), max_size=6).map("\n\n".join)
    | st.text(st.sampled_from('ab 1"“”|,;\t\n\r`~>#{}()[]=_<:/$\\\ud800\U0001f600\u3000'), max_size=80)
)
def test_fractions_sum_to_one(text: str) -> None:
    fractions = content_report(text, normalise(text), "en").fractions
    assert min(fractions.values(), default=1) > 0
    assert sum(fractions.values()) == pytest.approx(1 if fractions else 0)
    assert bool(fractions) is bool(text.strip())


HARD_PIECES = [*' \t\n"“`~(<|>:_#', "](a)", "http://a.b ", *(f"{line}\n" for line in ("1", "a,b", "||", "> a", "  a"))]
HARD_PIECES += ["```\n", "~~~a\n", '"a b c d e f g h" ']
HARD_PREFIXES = ["def ", "class ", "import {", "public ", "const ", "select ", "a@b:", "```", "~~~", '"', "<", "[1"]


@pytest.mark.slow
def test_time_is_linear_for_any_text() -> None:
    """200,000 characters take a tenth of a second; quadratic code takes minutes."""
    texts = [ESSAY * 1000, PYTHON * 1000, TABLES["csv"] * 1000, *(piece * 200_000 for piece in HARD_PIECES)]
    texts += [f"{prefix}{piece * 100}\n" * 2000 for prefix in HARD_PREFIXES for piece in ("a", " ", "(", '"')]
    texts += [f"a{piece * 90_000}b" for piece in ("\t", " \t", "\t ", " ")]
    texts += [f"{prefix}{piece * 200_000}`" for prefix in HARD_PREFIXES for piece in ("a", " ", "(", '"')]
    for text in texts:
        started = time.process_time()
        content_types(text[:200_000])
        assert time.process_time() - started < 2, text[:20]
