"""Assistant boilerplate around the requested text: openers, closers and refusals. English only. Pure.

Only a bounded number of characters at each end is searched, so a phrase quoted in the middle stays and the time does
not grow with the text. Input is the text before normalisation, because line breaks are evidence.
"""

from __future__ import annotations

import re

_LOOK = 600  # characters searched at each end
_MAX_REFUSAL = 1000  # characters; a longer text that begins with a refusal still answers the request
_MAX_CLOSERS = 8  # sentences
_STRAIGHT = str.maketrans(dict.fromkeys("’‘´ʼ", "'"))  # curly to straight apostrophes; the length stays the same

# Quotes, markdown and rules around a phrase.
_DECOR = r"[\s\"“*_#>=-]{0,12}"
_AI = (
    "an? (?:(?:large )?language model|(?:AI|artificial intelligence)(?: (?:language|text))?"
    "(?: (?:model|assistant|chatbot|system))?)(?: AI)?"
)
_MADE_BY = "(?:developed|trained|created|designed|programmed)"
_AS_AI = (
    rf"(?:as {_AI}(?: {_MADE_BY} [^,.!?\n]{{1,60}})?,? (?:i|i'm|i've|my|it is not|it's not)\b"
    rf"|i(?:'m| am) (?:just |only )?{_AI}(?=[,.;!]| {_MADE_BY}\b))"
)
_KIND = (
    "(?:essay|article|paragraph|story|poem|letter|speech|abstract|summary|review|text|report|response|answer|post|draft"
    "|blog|email|passage|script|dialogue|description|introduction|outline|composition|narrative|piece|content)"
)

# Openers.
_SURE = "(?:sure(?: thing)?|certainly|of course|absolutely|got it|understood)[!,.: ]{1,3} ?"
_YES = rf"(?:{_SURE}|(?:definitely|no problem|okay|ok|all ?right|great|gladly)[!,.: ]{{1,3}} ?)"
_GLAD = r"i(?:(?:'d|'ll| would| will) be (?:happy|glad) to|'ll (?:do|try|write)| can (?:help|do))\b[^.!?:\n]{0,100}[.!]"
_HERE = "(?:here(?:'s| is| are)|below is) "
# Distinguishes a requested text from one that a human is about to write.
_ORDERED = (
    r"(?:\b(?:\d{1,4}|two|three|four|five|six|seven|eight|nine|ten|twelve|fifteen|twenty)"
    r"[ -](?:word|sentence|paragraph|line|page)|\bre(?:writ|phras|word|vis)|paraphras|polish|refined|modified|improved"
    r"|enhanced|continuation|(?:my|an) attempt|based on|you (?:provided|requested|asked)"
    r"|(?:the|your) (?:given|provided|requested|following)\b|in the style|explanatory|argumentative|persuasive"
    r"|possible)"
)
_HAS_ORDERED = rf"(?=[^\n:]{{0,300}}?{_ORDERED})"
_HAS_KIND = rf"(?=[^\n:]{{0,300}}?\b(?:{_KIND}|version)\b)"
_HAS_GENRE = r"(?=[^\n:]{0,150}?\b(?:essay|article|abstract|story|poem|speech|version|rewrite)\b)"
_COLON = r"[^\n:]{0,300}?(?::[*_]{0,3}|\.\*\*)"
_LINE = r"[^\n]{0,300}?[*_]{0,3}[ \t]*(?=\n)"
_ANNOUNCED = re.compile(
    rf"{_DECOR}(?:{_SURE}(?:{_GLAD}\s{{0,2}})?{_HERE}(?:{_HAS_ORDERED}|{_HAS_KIND})(?:{_COLON}|{_LINE})"
    rf"|{_YES}{_HERE}(?:{_HAS_ORDERED}|{_HAS_KIND}){_LINE}"
    rf"|{_YES}?{_HERE}{_HAS_ORDERED}{_HAS_KIND}{_COLON}"
    rf"|{_HERE}(?:an?|the|your) {_HAS_GENRE}{_COLON}[ \t]*(?=\n)"
    rf"|{_SURE}{_GLAD}[ \t]*(?=\n))",
    re.IGNORECASE,
)
_REST = r"[^.!?\n]{0,400}(?:[.!?]+[\"”)]{0,2}(?=\s|\Z)|(?=\n)|\Z)"
_SORRY = (
    r"(?:(?:(?:i'm |i am )?(?:so |very )?sorry|i (?:do )?apologi[sz]e(?: for[^.!?\n]{0,60})?|(?:my )?apologies"
    r"|unfortunately)[,.!]?\s(?:but |however,? )?)"
)
_DISCLAIMED = re.compile(rf"{_DECOR}{_SORRY}?{_AS_AI}{_REST}", re.IGNORECASE)
_HOWEVER = re.compile(
    rf"\s*(?:however|but|nevertheless|that said),? i (?:can|could|will|would|am)\b{_REST}", re.IGNORECASE
)
_SENTENCE_END = re.compile(_REST)
_SPACE = re.compile(r"(?:[\s*_=-]*\n)?\s*")

# Refusals.
_CANNOT = (
    "(?:i (?:can(?:'t|not| not)|won't|will not|do(?:n't| not) feel comfortable)"
    "|i(?:'m| am) (?:unable|not able|not programmed|not designed|not comfortable)(?: to)?) "
)
_ASKED = (
    r"(?:(?:assist|help)(?: you)? with (?:that|this)\b|(?:fulfil+|comply with|satisfy|complete|process)"
    r" \w+(?: \w+)? (?:request|prompt|task|instruction)s?\b)"
)
_MADE = (
    r"(?:(?:creat|generat|writ|provid|produc|continu|engag|rewrit|paraphras|polish|discuss)\w* [^.!?\n]{0,120}?"
    rf"\b(?:{_KIND}|continuation|information|version)s?\b)"
)
# Quotes must not precede it: they indicate that a character of a story speaks.
_REFUSED = re.compile(
    rf"[\s*_#>=-]{{0,12}}(?:{_SORRY}{_CANNOT}(?:{_ASKED}|{_MADE})|{_CANNOT}(?P<plain>{_ASKED}|{_MADE}))", re.IGNORECASE
)
# Words that a human does not use to say that a text cannot be written.
_BY_RULE = re.compile(
    rf"\b(?:{_AI}\b|guidelines|ethical|inappropriate|harmful|offensive|(?:your|this|that) (?:request|prompt))",
    re.IGNORECASE,
)
_AI_UNABLE = re.compile(
    rf"{_DECOR}{_SORRY}?{_AS_AI}[^.!?\n]{{0,120}}?(?:can(?:'t|not| not)\b|unable|not able|do(?:n't| not) have"
    r"|not (?:appropriate|capable|programmed|designed)|against my)",
    re.IGNORECASE,
)

# Closers; each is one sentence.
_MORE = "(?:any )?(?:(?:more|further|additional|other) )?"
_OFFER = (
    r"if (?:you(?:'d| would)? (?:like|want|prefer|wish) (?:me to|any|some|a |to (?:see|change|adjust|modify|revise|add)"
    rf"|{_MORE}(?:help|assistance|changes|revisions|details?|information))|you (?:need|require) {_MORE}"
    "(?:help|assistance|changes|adjustments|modifications|revisions|clarification|information)"
    rf"|you have {_MORE}(?:questions|requests|topics|prompts)|there(?:'s| is) anything else)[^.!?\n]{{0,160}}"
)
_ASK = "(?:(?:please |just )?(?:let me know|(?:feel free|do(?:n't| not) hesitate) to (?:ask|let me know)))"
_THIS = rf"(?:this|that|it|the above)(?: (?:{_KIND}|information|explanation|example|sample|(?:revised )?version))?"
_CLOSERS = (
    rf"(?:i (?:really |sincerely )?)?hope (?:that )?{_THIS} (?:(?:helps?|is helpful|was helpful|makes sense)(?: you)?"
    r"(?: out)?(?: with your [^.!?\n]{1,40})?|meets your [^.!?\n]{1,60}|feels [^.!?\n]{1,30}|answers your question)",
    f"{_ASK},? {_OFFER}",
    rf"{_OFFER},? (?:please )?(?:{_ASK}|i(?:'m| am|'d be| would be) (?:happy|glad|here))[^.!?\n]{{0,120}}",
    r"(?:is|was) there anything else (?:you(?:'d| would)|(?:that )?i can )[^.!?\n]{0,80}",
    rf"(?:please )?note(?: that|:) [^.!?\n]{{0,60}}?(?:\b{_AI}\b|(?:this|the above) (?:{_KIND}|is) [^.!?\n]{{0,40}}?"
    r"\b(?:written (?:as|in|by)|generated|fictional|(?:only )?an? (?:sample|example)|based on))[^.!?\n]{0,300}",
    rf"{_AS_AI}[^.!?\n]{{0,300}}",
    r"(?:(?:total |approximate |approx\.? )?(?:word ?count|number of words|total words|words))[ \t]?"
    r"(?:\([^)\n]{0,30}\))?[ \t]{0,2}[:=][ \t*_]{0,4}(?:about |approximately |approx\.? |~)?\d[\d,]{0,6}(?: words)?",
    r"(?<=[(\[*])\d[\d,]{0,6} words",
)
_CLOSER = re.compile(rf"[\[(*_\"“]{{0,4}}(?:{'|'.join(_CLOSERS)})[.!?)\]*_\"”\s]{{0,8}}", re.IGNORECASE)
_RULE = re.compile(r"\n\s{0,4}[-*_=]{3,}\s*\Z")
_BOUNDARY = re.compile(r"(?:[.!?][\"”')\]*]{0,4}\s{1,4}|\n\s{0,4})(?=\S)")


def strip_boilerplate(text: str) -> str | None:
    """The text without boilerplate before and after it; None for a refusal or if nothing else remains."""
    lead, size = len(text) - len(text.lstrip()), len(text.rstrip())
    head = text[lead : lead + _LOOK].translate(_STRAIGHT)
    opener = 0  # end of the refusal and of consecutive openers in `head`
    if unable := _AI_UNABLE.match(head):
        opener = unable.end()
    elif (refused := _REFUSED.match(head)) and (refused["plain"] is None or _BY_RULE.search(head)):
        opener = refused.end()
    if opener and size - lead <= _MAX_REFUSAL:
        return None
    for pattern in (_SENTENCE_END if opener else _DISCLAIMED, _HOWEVER, _ANNOUNCED):
        if (match := pattern.match(head, opener)) and (opener or pattern is not _HOWEVER):
            opener = match.end()
    if opener and (space := _SPACE.match(head, opener)):
        opener = space.end()
    stop = size
    for _ in range(_MAX_CLOSERS):  # sentence by sentence from the end
        start = max(0, stop - _LOOK)
        tail = text[start:stop].translate(_STRAIGHT)
        begin = max((match.end() for match in _BOUNDARY.finditer(tail)), default=0)
        if not _CLOSER.fullmatch(tail, begin):
            break
        stop = start + len(_RULE.sub("", tail[:begin].rstrip()).rstrip())
    if not opener and stop == size:
        return text
    kept = text[lead + opener if opener else 0 : stop if stop < size else len(text)]
    return kept if kept.strip() else None
