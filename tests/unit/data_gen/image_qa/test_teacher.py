import dataclasses
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from teacher_server import failing, good, picture_of, prompt_of, saying, serving, silent, truncated_body

from data_gen.image_qa.facts import Fact, Picture, Thing
from data_gen.image_qa.teacher.client import Teacher, make_teacher
from data_gen.image_qa.teacher.generate import ask_teacher
from data_gen.image_qa.teacher.replies import InvalidReply, parse_rounds
from tuning.errors import ConfigError, DataError, DeviceError, Interrupted

KEY = "sk-very-secret"


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def pictures(tmp_path):
    made = []
    for name, size, color in (("robot.png", (1200, 600), "blue"), ("kitchen.png", (40, 30), "red")):
        Image.new("RGB", size, color).save(tmp_path / name)
        where = f"facts.yaml, line {len(made)}"
        made.append(Picture(image=name, path=tmp_path / name, where=where, caption=f"A {color} thing."))
    made[0] = dataclasses.replace(
        made[0],
        objects=(Thing("robot", "blue", 2, "on the left"),),
        text=("ZX-9",),
        facts=(Fact("Who built it?", "Mara did.", "the workshop's log"),),
        absent=("a dog",),
    )
    return made


@pytest.fixture
def ask(server, pictures, tmp_path, monkeypatch):
    # The client library pauses between retries; a short pause keeps the tests fast.
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)

    def call(*, dialogues=1, rounds=2, about=pictures[:1], seed=0, on_dialogue=lambda _: None, **teacher):
        asked = Teacher(**({"url": f"{server.url}/v1", "model": "eyes", "timeout": 0.3} | teacher))
        notes = tmp_path / "out.teacher.jsonl"
        return ask_teacher(asked, about, notes, dialogues=dialogues, rounds=rounds, seed=seed, on_dialogue=on_dialogue)

    return call


def answer(*rounds):
    return json.dumps({"rounds": [{"question": question, "answer": answer} for question, answer in rounds]})


GOOD = answer(("What is it?", "A robot."), ("Where?", "On the left."))


def test_request_has_scaled_picture_and_facts_and_reply_becomes_a_dialogue(server, ask):
    result = ask()
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions" and body["model"] == "eyes"
    assert not headers.keys() & {"authorization", "openai-organization", "openai-project"}
    assert picture_of(body).size == (768, 384)
    for known in ("A blue thing.", "robot (count: 2, colour: blue, place: on the left)", "ZX-9", "Mara did", "a dog"):
        assert known in prompt_of(body)
    (conversation,) = result.conversations
    assert conversation.images == ("robot.png",)
    assert [turn.role for turn in conversation.turns] == ["user", "assistant"] * 2
    assert [turn.content.count("<image>") for turn in conversation.turns] == [1, 0, 0, 0]
    assert conversation.turns[0].content.startswith("<image>\nWhat is ")


def test_second_run_sends_no_requests_and_gives_the_same_dialogues(server, ask, pictures):
    first = ask(dialogues=3, about=pictures)
    assert len(server.requests) == 6 and first.stored == 0
    second = ask(dialogues=3, about=pictures)
    assert len(server.requests) == 6 and second.stored == 6
    assert second.conversations == first.conversations
    ask(dialogues=4, about=pictures)
    assert len(server.requests) == 8
    ask(dialogues=1, seed=1)
    assert len(server.requests) == 9


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_resumed_run_equals_uninterrupted_run(server, ask, pictures, tmp_path, stop):
    notes = tmp_path / "out.teacher.jsonl"
    bad = saying("no JSON here")
    server.script = [good, bad, good, good, good, bad, good]
    straight, whole = ask(dialogues=3, about=pictures).conversations, notes.read_bytes()
    notes.unlink()
    server.requests.clear()

    def interrupt(result):
        if len(result.conversations) == stop:
            raise KeyboardInterrupt

    server.script = [good, bad, good, good, good, bad, good]
    with pytest.raises(Interrupted, match=rf"{stop} of 6 .* run the same command"):
        ask(dialogues=3, about=pictures, on_dialogue=interrupt)
    with notes.open("ab") as stream:
        stream.write(whole.splitlines(keepends=True)[stop][:-7])  # a power cut in the middle of the next line
    assert ask(dialogues=3, about=pictures).conversations == straight
    assert notes.read_bytes() == whole
    assert len(server.requests) == 8


@pytest.mark.parametrize(
    "fault", [failing(500), failing(503, "<html>busy</html>"), failing(429), truncated_body, silent]
)
def test_failed_request_is_retried(server, ask, fault):
    server.script = [fault]
    result = ask()
    assert len(result.conversations) == 1 and result.left_out == 0
    assert len(server.requests) == 2 and server.requests[0][2] == server.requests[1][2]


def test_retry_after_header_is_respected(server, ask):
    server.script = [failing(429, retry_after="1")]
    began = time.monotonic()
    ask()
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (
            failing(401, '{"error": {"message": "bad key sk-very-secret"}}'),
            ConfigError,
            "refuses the API key in MY_KEY",
        ),
        (failing(404, '{"error": {"message": "no such model"}}'), ConfigError, "no model eyes .404: no such model"),
        (failing(422, '{"detail": "not sk-very-secret"}'), ConfigError, r"refuses the request .422: not \*\*\*"),
        (failing(200, "<html>Welcome</html>", content_type="text/html"), ConfigError, "not as an OpenAI-compatible"),
        (failing(200, '{"error": "no"}'), ConfigError, "not as an OpenAI-compatible"),
        (failing(200, '{"choices": []}'), ConfigError, "not as an OpenAI-compatible"),
        (failing(500, '{"error": {"message": "out of memory"}}'), DeviceError, "fails .500: out of memory"),
        (failing(429, retry_after="3600"), DeviceError, "allows fewer requests"),
        (truncated_body, DeviceError, "cannot be reached"),
        (silent, DeviceError, "did not answer within 0.3 seconds, 2 times"),
    ],
)
def test_permanent_failure_is_one_sentence_with_the_url_and_without_the_key(server, ask, tmp_path, fault, kind, words):
    server.script = [good]
    server.otherwise = fault
    with pytest.raises(kind, match=words) as raised:
        ask(dialogues=2, retries=1, key=KEY, api_key_env="MY_KEY")
    assert server.requests[0][1]["authorization"] == f"Bearer {KEY}"
    assert server.url in str(raised.value) and KEY not in str(raised.value) and "\n" not in str(raised.value)
    notes = (tmp_path / "out.teacher.jsonl").read_text()
    assert notes.count("\n") == 1 and KEY not in notes


def test_missing_api_key_is_reported(server, ask):
    server.otherwise = failing(401)
    with pytest.raises(ConfigError, match=r"needs an API key .401. and OPENAI_API_KEY is not set"):
        ask()


def test_unreachable_server_is_reported(ask):
    with pytest.raises(DeviceError, match=r"^http://127.0.0.1:1/v1: cannot be reached .*refused"):
        ask(url="http://127.0.0.1:1/v1", retries=1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I cannot do that.", "no complete JSON"),
        (GOOD[:-3], "no complete JSON"),
        (answer(("What is it?", "A robot.")), "there are 1 rounds and not 2"),
        (answer(("What is it?", "A robot."), ("what is  it", "Blue.")), "question 2 was asked before"),
        (answer(("What is it?", "A robot."), ("Where?", " ")), "answer 2 says nothing"),
        (answer(("What is it?", "A robot."), ("...", "Left.")), "question 2 says nothing"),
        (answer(("What is it?", 3), ("Where?", "Left.")), "answer 1 is missing"),
        (answer(("<image>\nWhat is it?", "A robot."), ("Where?", "Left.")), "holds '<image>'"),
        (answer(("What is it?", "A robot.<|im_end|>"), ("Where?", "Left.")), "chat markup"),
        (answer(("What is it?", "A robot.\nUser: and?"), ("Where?", "Left.")), "chat markup"),
        (answer(("What is it?", "A robot." * 500), ("Where?", "Left.")), "longer than 1500"),
        (answer(("What is it?", "A \x07 robot."), ("Where?", "Left.")), "control characters"),
        ('[{"question": "What is it?", "answer": "A robot."}, "Where?"]', "round 2 is no object"),
        ("[{" * 25_000, "no complete JSON"),
        ('{"a":' * 10_000, "no complete JSON"),
        (GOOD + " " * 60_000, "longer than 60000"),
        (None, "empty"),
    ],
)
def test_invalid_reply_is_described_in_the_next_request(server, ask, text, reason):
    server.script = [saying(text), saying(GOOD)]
    result = ask()
    assert result.requests == 2 and result.left_out == 0
    first, second = (body for _, _, body in server.requests)
    assert reason in prompt_of(second) and reason not in prompt_of(first)
    assert first["seed"] != second["seed"]
    assert result.conversations[0].turns[1].content == "A robot."


def test_truncated_reply_is_described_in_the_next_request(server, ask):
    server.script = [saying(GOOD, finish="length")]
    ask()
    assert "cut off" in prompt_of(server.requests[1][2])


def test_first_questions_of_one_picture_are_distinct(server, ask):
    server.script = [saying(GOOD), saying(GOOD)]
    assert len(ask(dialogues=2).conversations) == 2
    assert "'What is it?'" in prompt_of(server.requests[2][2])


def test_invalid_dialogue_is_counted_and_requested_again_by_the_next_run(server, ask):
    server.script = [good, *[saying("nonsense")] * 3]
    result = ask(dialogues=3)
    assert (len(result.conversations), result.left_out, result.requests) == (2, 1, 5)
    assert result.error is not None and "no complete JSON" in result.error
    assert len(ask(dialogues=3).conversations) == 3 and len(server.requests) == 6


def test_broken_line_in_the_stored_replies_is_reported(ask, tmp_path):
    ask()
    notes = tmp_path / "out.teacher.jsonl"
    notes.write_text("{}\n" + notes.read_text())
    with pytest.raises(DataError, match=r"out\.teacher\.jsonl, line 1"):
        ask()


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=40)


@given(before=WORDS, after=WORDS, fenced=st.booleans(), bare=st.booleans(), indent=st.sampled_from([None, 2]))
@settings(deadline=None)
def test_json_is_found_anywhere_in_the_reply(before, after, fenced, bare, indent):
    value = json.loads(GOOD)
    text = json.dumps(value["rounds"] if bare else value, indent=indent)
    text = f"{before}\n" + (f"```json\n{text}\n```" if fenced else text) + f"\n{after}"
    if "[" in before or "{" in before or '"' in before:
        return  # the text before could start other JSON
    assert parse_rounds(text, 2) == (("What is it?", "A robot."), ("Where?", "On the left."))


@given(text=st.text(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_other_text_is_an_invalid_reply(text):
    with pytest.raises(InvalidReply):
        parse_rounds(text, 2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("https://api.example.com/v1/chat/completions", "https://api.example.com/v1"),
        ("https://example.com/openai/deployments/eyes", "https://example.com/openai/deployments/eyes"),
    ],
)
def test_addresses_are_normalized(given, expected):
    assert make_teacher(given, "m", "K", None).url == expected


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x/v1", "http://", "http://x:99999", "http://[x", "", "http://x?a=b"]
)
def test_invalid_addresses_are_refused(url):
    with pytest.raises(ConfigError, match="not the address"):
        make_teacher(url, "m", "K", None)


def test_secrets_never_appear_in_errors_or_in_repr():
    with pytest.raises(ConfigError, match="password") as raised:
        make_teacher("http://me:sk-very-secret@x/v1", "m", "K", None)
    assert KEY not in str(raised.value)
    with pytest.raises(ConfigError, match="K: that variable"):
        make_teacher("http://x", "m", "K", "k\u00e9y")
    assert KEY not in repr(make_teacher("http://x", "m", "K", f"{KEY}\n"))
