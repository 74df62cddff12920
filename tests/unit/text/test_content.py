"""Which texts are out of scope, and why."""

from __future__ import annotations

import base64
import codecs
import random
import re

import pytest

from detect_ai.text.content import Content, content_report
from detect_ai.text.normalize import normalise

ENGLISH = (
    "The council voted on Tuesday to close the bridge for two weeks, and the mayor told reporters that the work would "
    "begin in May. Residents of the north bank, who have used a ferry since the flood of 2013, were less sure of it. "
    "Some of them said that they had heard the same promise from three mayors before him, and that the road on their "
    "side was still full of holes. The money will come from the state, which has set aside a part of its budget for "
    "roads that are used by school buses. "
)
GERMAN = (
    "Der Ausschuss traf sich am Dienstag, um über die Straßen im Norden der Stadt zu sprechen, die seit dem Sturm im "
    "März gesperrt sind, und darüber, wer die Arbeit bezahlt, die vor dem Winter getan werden muss. "
)
RUSSIAN = (
    "Комитет собрался во вторник, чтобы поговорить о дорогах на севере города, которые закрыты после мартовской бури. "
)
CODE = "def count(path):\n    if not path.exists():\n        return 0\n    return len(path.read_text().split())\n\n"
NAMES = ["James Smith", "Mary Johnson", "Robert Williams", "Patricia Brown", "Linda Davis", "Michael Wilson"] * 8
NOUNS = "apple river stone yellow engine paper mountain bottle window garden silver planet coffee market".split()  # noqa: SIM905
_random = random.Random(0)


def letters(alphabet: str, length: int, count: int) -> list[str]:
    return ["".join(_random.choices(alphabet, k=length)) for _ in range(count)]


# From public reports: text extracted from PDFs, other languages, no prose, no language, lost characters.
OUT_OF_SCOPE = {
    "font without ToUnicode": ("".join(chr(ord(c) - 29) if c.isalpha() else c for c in ENGLISH), "not_language"),
    "letter spacing": (re.sub(r"(?<=\S)(?=\S)", " ", ENGLISH), "not_language"),
    "letter spacing, word spaces lost": (" ".join(ENGLISH.replace(" ", "")), "not_language"),
    "glyphs placed one by one": (re.sub(r"([ilt])(?=\w)", r"\1 ", ENGLISH), "not_language"),
    "glyphs placed one by one, fewer gaps": (re.sub(r"([il])(?=\w)", r"\1 ", ENGLISH), "not_language"),
    "German, then an English footer": (GERMAN * 12 + ENGLISH[:126], "other_language"),
    "English abstract, then German": (ENGLISH + GERMAN * 6, "other_language"),
    "German, then an English abstract": (GERMAN * 6 + ENGLISH, "other_language"),
    "English paragraph in German": (GERMAN * 3 + ENGLISH + GERMAN * 3, "other_language"),
    "a third German": (ENGLISH * 2 + GERMAN * 3, "other_language"),
    "Russian": (RUSSIAN * 2, "other_script"),
    "a third Russian": (ENGLISH + RUSSIAN * 2, "other_language"),
    "Indonesian": (
        "Semua orang dilahirkan merdeka dan mempunyai martabat dan hak-hak yang sama. Mereka dikaruniai akal dan hati "
        "nurani dan hendaknya bergaul satu sama lain dalam semangat persaudaraan.",
        "not_language",
    ),
    "Swahili": (
        "Watu wote wamezaliwa huru, hadhi na haki zao ni sawa. Wote wamejaliwa akili na dhamiri, hivyo yapasa "
        "watendeane kindugu. Kila mtu anastahili kuwa na haki zote na uhuru wote.",
        "not_language",
    ),
    "Afrikaans": (
        "Alle menslike wesens word vry, met gelyke waardigheid en regte, gebore. Hulle het rede en gewete en behoort "
        "in die gees van broederskap teenoor mekaar op te tree.",
        "not_language",
    ),
    "Somali": (
        "Aadanaha dhammaantiis wuxuu dhashaa isagoo xor ah kana siman xagga sharafta iyo xuquuqada Waxaa Alle siiyay "
        "aqoon iyo wacyi waana in la isula dhaqmaa si walaaltinimo ah.",
        "not_language",
    ),
    "Latin": (
        "Gallia est omnis divisa in partes tres, quarum unam incolunt Belgae, aliam Aquitani, tertiam qui ipsorum "
        "lingua Celtae, nostra Galli appellantur. Hi omnes lingua, institutis, legibus inter se differunt.",
        "other_language",
    ),
    "links": ("".join(f"see https://example.org/page/{n}\n" for n in range(20)), "not_prose"),
    "long links": (" ".join(f"https://example.org/{'x' * 60}?q={n}" for n in range(20)), "not_prose"),
    "bibliography": (
        "".join(
            f"{name.split()[1]}, {name[0]}. (1990). The mending of nets. Journal, 3(2), 10-12.\n" for name in NAMES
        ),
        "not_prose",
    ),
    "numbered references": ("".join(f"[{n}] A. Writer, The mending of nets, 1990.\n" for n in range(12)), "not_prose"),
    "code, quotations, links, tables and a line of prose": (
        CODE * 3
        + "> What will it cost, and who will pay for it?\n" * 7
        + "".join(f"https://example.org/page/{n}/of/the/report\n" for n in range(9))
        + f"1,2,3\n4,5,6\n{ENGLISH[:126]}",
        "not_prose",
    ),
    "code": (CODE * 8, "mostly_code"),
    "log records": (
        "".join(f"2024-01-{n} 12:00:{n},5 INFO pool - task {n} was done in {n} ms\n" for n in range(10, 30)),
        "mostly_code",
    ),
    "YAML": (
        "".join(f"app{n}:\n  image: registry/app{n}:1.{n}\n  restart: always\n" for n in range(20)),
        "not_language",
    ),
    "table": ("| town | bridge |\n" * 12, "mostly_tables"),
    "numbers": ("1234 5678 !!! ... " * 10, "mostly_tables"),
    "quoted mail": ("He wrote:\n" + "> The council went to the bridge on Tuesday.\n" * 6, "mostly_quotations"),
    "base64": (base64.encodebytes(_random.randbytes(900)).decode(), "not_language"),
    "keyboard mash": (" ".join(letters("asdfghjkl", 6, 80)), "not_language"),
    "random words": (" ".join(_random.choices(NOUNS, k=120)), "not_language"),
    "DNA in blocks": (" ".join(letters("ACGT", 10, 90)), "not_language"),
    "DNA": (letters("ACGT", 3000, 1)[0], "not_language"),
    "one word": ("x" * 5000, "not_language"),
    "e-mail addresses": ("\n".join(f"first{n}.last{n}@example.org" for n in range(60)), "not_language"),
    "names": (", ".join(NAMES), "not_language"),
    "rot13": (codecs.encode(ENGLISH, "rot13"), "not_language"),
    "reversed": (ENGLISH[::-1], "not_language"),
    "entities for spaces": (ENGLISH.replace(" ", "&nbsp;"), "not_language"),
    "escape sequences": (" ".join(f"\x1b[31m{word}\x1b[0m" for word in ENGLISH.split()), "not_language"),
    "no spaces": (ENGLISH.replace(" ", ""), "not_language"),
    "lost characters": (re.sub(".(.{9})", "\ufffd\\1", ENGLISH), "not_language"),
    "lone surrogates": (re.sub(".(.{49})", "\ud800\\1", ENGLISH), "not_language"),
}
IN_SCOPE = {
    "news": ENGLISH,
    "capitals": ENGLISH.upper(),
    "lower case": ENGLISH.lower(),
    "student essay": (
        "i think that students should have there phones at lunch, some kids dont have a ride home and they half to "
        "call there mom. One of my friends he got left at school for 2 hours cuz he can call nobody an it was "
        "raining. So i think the principle should of change the rule an let us have are phones, because its not fare "
        "to all of us."
    ),
    "non-native English": (
        "In my opinion the people they is not having enough time for make sport because all day they working and when "
        "they come in house is very tired, so the city must to build more park and place for the familys. In my "
        "country is the same problem and the mayor don't do nothing since many years ago."
    ),
    "law": (
        "The Licensee shall indemnify and hold harmless the Licensor, its officers, agents and successors, from and "
        "against any and all claims, damages, liabilities, costs and expenses (including reasonable attorneys' fees) "
        "arising out of or in connection with any breach of Section 4(b)(ii) hereof; provided, however, that nothing "
        "herein shall be construed to limit the remedies available at law or in equity."
    ),
    "poem": (
        "The tide goes out; the lamps are lit;\n    the gulls fall silent one by one;\nand still beside the quay they "
        "sit,\n    the men whose working day is done;\n\nthey do not speak; they watch the sea,\n    its slow and "
        "heavy rise and fall;\nthey wait for what will never be,\n    and no one comes for them at all.\n"
    ),
    "dialogue": (
        '"Where have you been?"\n\n"Out," he said. "I went to the harbour, and then to the old house."\n\n"You went '
        'to the house? Alone? After all that he said to you in the winter about the boat and the money?"\n\n"Somebody '
        'had to go."\n\n"And what did you find there?"\n\n"Nothing. A dog, and a letter for you."\n\n"Give it to me," '
        "she said.\n"
    ),
    "interview": (
        '"The big difference between them and us is that we are happy to allow people who are still learning to join '
        'us," he says. "They come here twice a week, and they leave with a trade." Both of them would like to see '
        'more. "There is not a lot of help there," she said. "It is still one of our last problems, and nobody wants '
        'to pay for it."'
    ),
    "steps": (
        "1. Turn off the water.\n2. Remove the cap and the screw below it.\n3. Pull the handle off.\n4. Turn the nut "
        "to the left until it is loose.\n5. Take out the old washer.\n6. Put in the new one, and do the same steps "
        "backwards.\n"
    ),
    "abstract with formulas": (
        "Let $G$ be a finite group that acts on $X_n \\subset \\mathbb{R}^{2n}$. We show that $H^i(X_n/G) = 0$ for "
        "all $i > n$, and that $\\pi_1(X_n/G) = G$ if $n \\ge 3$. As a corollary we obtain a lower bound $|G| \\le c "
        "n^{2}$ on the order of the group, which is sharp for p = 2, where k and m are the rank and the degree of the "
        "cover."
    ),
    "biomedical methods": (
        "Each 50 μl reaction consisted of 34 μl of water, 5 μl of 10X buffer, 2.5 μl DMSO, 2 μl of each primer, 4 μl "
        "of 10 mM dNTPs, 2 μl of cDNA and 0.5 μl of polymerase (Qiagen). The products were run on a 1.0% agarose gel, "
        "and the bands were cut out and sequenced as described (Smith et al., 2009) [12]."
    ),
    "German quotation": ENGLISH * 4 + GERMAN + ENGLISH * 4,
    "essay with references": ENGLISH
    + "".join(f"{name.split()[1]}, {name[0]}. (1990). The mending of nets. Journal, 3(2), 10.\n" for name in NAMES[:4]),
    "few words": "Too short to tell.",
    "few lost characters": ENGLISH + "\ufffd" + ENGLISH,
    "empty": "",
}


def report(text: str) -> Content:
    return content_report(text, normalise(text), "en")


@pytest.mark.parametrize("name", [*OUT_OF_SCOPE, *IN_SCOPE])
def test_texts_out_of_scope_get_the_right_reason(name: str) -> None:
    text, *reasons = OUT_OF_SCOPE[name] if name in OUT_OF_SCOPE else (IN_SCOPE[name],)
    assert report(text).reasons == reasons


def test_the_language_is_that_of_the_prose() -> None:
    """Code and links are English or no language; only the text between them counts."""
    content = report(f"{CODE * 3}\n{GERMAN * 2}")
    assert content.rounded() == {"code": 0.4, "other_language": 0.6}
    assert report(f"{CODE * 3}\n{ENGLISH}").rounded() == {"prose": 0.63, "code": 0.37}
    assert report(CODE * 3 + RUSSIAN * 2).fractions.keys() == {"code", "other_script"}


def test_lost_characters_are_a_fraction() -> None:
    assert report("a\ufffd\ufffd b").fractions == {"prose": 0.5, "lost": 0.5}
