"""Boilerplate of assistants: openers, closers and refusals."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.corpus.boilerplate import strip_boilerplate

# Longer than any refusal.
BODY = "\n\n".join(
    [
        "Cars changed how cities grow. Streets that were made for people became roads, and the corner shop moved out.",
        *["The edge of the town was further away every year, and so was everyone who lived there."] * 10,
        '"Sure, here is an essay," said nobody at the time.\n\nI would not call that progress.',
    ]
)
OPENERS = [
    "Sure, here is an essay on limiting car usage:\n\n",
    "Sure! Here’s the revised version to make it more engaging:\n\n",
    "Sure thing! Here's my essay on the benefits of accomplishing goals:\n\n",
    "Sure, I can help you with that. Here is an essay about the advantages of limiting car usage:\n\n",
    "Certainly! Here's an essay on limiting car usage:\n\n---\n\n",
    "Of course. Here's a story based on the writing prompt:",
    "Okay, here's my attempt at writing an essay as an average 8th grade student:\n\n",
    "**Here is the requested article.**",
    "Here is a 300-word essay on limiting car usage:\n",
    "Here is a 7 sentence abstract for the given article title:",
    "Here's a rewritten version of your text with a different tone and feel:\n\n",
    "As an AI language model, I do not hold opinions on cars. However, I can offer a balanced view on the topic.\n\n",
    "As a language model AI, it is not my place to take a stance. ",
    "I’m sorry, but as an AI language model, I cannot drive a car. However, I can provide an essay. ",
    "Sure, I'd be happy to provide a detailed answer to your question.\n\n",
]
CLOSERS = [
    "\n\nI hope this helps!",
    " I hope this information is helpful. Please let me know if you have any other questions.",
    "\n\n---\n\nI hope this version feels friendlier!",
    "\n\nLet me know if you’d like me to change the tone.",
    " If you have any further questions, please do not hesitate to ask.",
    "\n\nIs there anything else I can help you with?",
    "\n\nPlease note that as an AI, I cannot check these facts.",
    "\n\nNote: This essay is written as if by a grade 8 student, with small mistakes.",
    "\n\nWord count: 312",
    "\n\n**Word Count: 1,597 words**",
    "\n\n(297 words)",
    "\n\n[303 words]\n\nI hope this helps!",
    " As an AI language model, I don’t have an opinion on that.",
]
REFUSALS = [
    "As an AI language model, I am unable to engage with content that may violate my usage guidelines. Learn more.",
    "I'm sorry, but I can't assist with that.",
    "I’m sorry, but I cannot fulfil this request.",
    "I'm not able to help with that, as I'm only a language model.",
    "I cannot provide a news article on that summary as it goes against ethical standards.",
    "I apologize for the confusion, but I am unable to write an essay on this topic. Is there anything else I can do?",
    "Sure, here is an essay on limiting car usage:\n\n",
    "I hope this helps! Let me know if you have any questions.",
]
HUMAN = [
    BODY,
    "Sure extracurricular activities are fun, but they cost time.",
    "Of course the Earthlings had firearms; they had had them for a thousand years.",
    "Absolutely not! This place is a joke.",
    "Okay, here's the thing: nobody reads the manual. And nobody ever will.",
    "Here are my thoughts over all three of my visits. The staff was kind.",
    "Here is a letter my grandmother wrote to me: Dear child, stay warm.",
    "Here's why the author thinks Venus is a worthy pursuit: it was once like Earth.",
    "As an AI researcher, I cannot count the times a model surprised me. It never stops.",
    "As a language teacher, I have no use for it.",
    "I can't write a review bad enough for this place. Stay away.",
    "\"I'm sorry, but I can't help you with that,\" he said, and closed the door.",
    "I am sorry to announce that the unfairness of the Electoral College has come to my attention.",
    "The rules are clear. I hope this letter helps you decide what to do about them.",
    "We sold the house. Please let me know when you are back in town.",
    "The word count was what worried me. I had 312 words.",
    "He left a note: this is the end.",
    "However, I can see why the town wanted roads. It was poor.",
    "The town was poor. Sure, here is an essay on what it did:\n\nIt built roads.",
]


@given(
    st.sampled_from(["", *OPENERS]),
    st.lists(st.sampled_from(CLOSERS), max_size=3).map(lambda closers: "".join("\n" + c for c in closers)),
    st.sampled_from(["", "\n "]),
)
def test_openers_and_closers_are_cut(opener, closers, space):
    assert strip_boilerplate(space + opener + BODY + closers + space).strip() == BODY


@pytest.mark.parametrize("text", REFUSALS)
def test_refusal_is_the_whole_text(text):
    assert strip_boilerplate(text) is None


def test_long_text_after_a_refusal_stays():
    text = "I cannot fulfil this request as asked. However, I can write in general terms. " + "Cars are loud. " * 100
    assert strip_boilerplate(text) == "Cars are loud. " * 100


@pytest.mark.parametrize("text", HUMAN)
def test_human_text_stays(text):
    assert strip_boilerplate(text) == text


@pytest.mark.parametrize("phrase", OPENERS + CLOSERS + REFUSALS)
def test_phrase_in_the_middle_stays(phrase):
    text = f"{BODY} It began like this: {phrase.strip()} So it went on for a while, and then all left.\n\n{BODY}"
    assert strip_boilerplate(text) == text


@pytest.mark.slow
def test_time_does_not_grow_with_the_text():
    repeated = ["Sure, here is ", "essay ", "as an AI language model, I ", "I'm sorry, but I cannot write ", "(", "\n"]
    repeated += ["let me know if you ", "note: this essay is ", "Word count = 1", "I hope this helps!\n", "*", " ", "’"]
    for first in repeated:
        texts = [first * (3_000_000 // len(first)), *((first + second) * 30_000 for second in repeated)]
        start = time.process_time()
        for text in texts:
            strip_boilerplate(text)
        assert time.process_time() - start < 2, first
