"""The texts that a run's model accepts, from Python and from the command line."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fedsvd.commands.python_api import Run
from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError, DataError
from fedsvd.trained import prediction
from fedsvd.trained.inputs import check_inputs
from fedsvd.trained.run import TrainedModel

SINGLE = ["experiment=smoke"]
PAIRS = ["experiment=smoke", "data=snli"]
CHATS = ["experiment=smoke", "data=chitchat", "model=tiny_llama", "model.task=causal_lm", "partition=iid"]
TAGS = ["experiment=smoke", "data=jsonl", "data.path=x.jsonl", "model.task=token_classification", "partition=iid"]
TURN = {"role": "user", "content": "Hello"}


@pytest.mark.parametrize(
    ("overrides", "texts", "pairs", "message"),
    [
        (SINGLE, "a fine film", None, "texts = 'a fine film' is one text: expected a list of texts. Write ['a fine"),
        (SINGLE, b"a", None, "texts = b'a' is invalid: expected a list of texts"),
        (SINGLE, {"text": ["a"]}, None, "texts = {'text': ['a']} is invalid: expected a list of texts"),
        (SINGLE, None, None, "texts = None is invalid: expected a list of texts"),
        (SINGLE, ["a", None], None, "texts[1] = None is invalid: expected a text (str)"),
        (SINGLE, ["a", "\udcff"], None, "texts[1] = '\\udcff' is invalid: it is not valid Unicode"),
        (SINGLE, ["a"], ["b"], "expects single texts, and there are second texts"),
        (SINGLE, [["a", "b"]], None, "texts[0] = ['a', 'b'] is invalid: expected a text (str)"),
        (PAIRS, ["a"], None, "expects pairs of texts, and there are only first ones"),
        (PAIRS, [("a", "b")], None, "texts[0] = ('a', 'b') is invalid: expected a text (str)"),
        (PAIRS, ["a"], "x", "pairs = 'x' is one text: expected a list of texts. Write ['x']"),
        (PAIRS, ["a"], [None], "pairs[0] = None is invalid: expected a text (str)"),
        (PAIRS, ["a", "b"], ["x"], "pairs has 1 texts, and texts has 2: give one second text for each text"),
        (PAIRS, ["a", "b"], [], "pairs has 0 texts, and texts has 2: give one second text for each text"),
        (TAGS, "a fine film", None, "texts = 'a fine film' is one text"),
        (TAGS, [["a", 5]], None, "texts[0][1] = 5 is invalid: expected a word (str)"),
        (TAGS, [7], None, "texts[0] = 7 is invalid: expected a text (str), or a list of its words"),
        (CHATS, "Hello", None, "texts = 'Hello' is one text"),
        (CHATS, ["Hello"], ["x"], "expects single texts, and there are second texts"),
    ],
)
def test_other_texts_than_the_model_expects_are_refused(
    overrides: list[str], texts: object, pairs: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_inputs(compose(overrides), texts, pairs)


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        (TURN, "texts[0] holds an object: expected a list of turns"),
        ([{"from": "human", "value": "Hello"}], "texts[0] holds a turn 1 without the keys role and content"),
        ([TURN, {"role": "bot", "content": "Hi"}], "texts[0] holds the role 'bot' in turn 2"),
    ],
)
def test_an_invalid_conversation_is_refused(conversation: object, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        check_inputs(compose(CHATS), [conversation])


@pytest.mark.parametrize(
    ("overrides", "texts", "pairs"),
    [
        (SINGLE, [], None),
        (SINGLE, ("a", ""), None),
        (SINGLE, np.array(["a", "b"]), None),
        (PAIRS, ["a", "b"], ("x", "y")),
        (TAGS, ["a b", ["a", "b"]], None),
        (CHATS, ["Hello", [TURN]], None),
    ],
)
def test_what_the_model_expects_is_accepted(overrides: list[str], texts: Any, pairs: Any) -> None:
    assert check_inputs(compose(overrides), texts, pairs) == (list(texts), None if pairs is None else list(pairs))


def test_a_run_refuses_one_text_from_python() -> None:
    inner = SimpleNamespace(generates_text=False, classes=("negative", "positive"), config=compose(SINGLE))
    loaded = cast(TrainedModel, SimpleNamespace(run=inner))
    run = Run(Path(), (), {})
    run.__dict__["_model"] = loaded

    with pytest.raises(ConfigError, match="is one text"):
        run.predict("a fine film")
    with pytest.raises(ConfigError, match="expects single texts"):
        run.predict(["a"], ["b"])
    # Before the first prediction is asked for.
    with pytest.raises(ConfigError, match="is one text"):
        prediction.predict(loaded, "a fine film")
