import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from teacher_server import failing, good, saying, serving, silent

SMALL = ["--dialogues", "3", "--rounds", "4", "--repeat", "2"]


@pytest.fixture
def start(start_process):
    def call(url, *words, **variables):
        return start_process(
            "data", "image-qa", "facts.yaml", "qa.jsonl", *SMALL, "--teacher", url, *words, **variables
        )

    return call


def test_teacher_dialogues_are_added_and_the_key_is_not_saved(start, tmp_path):
    with serving() as server:
        server.script = [good, saying("nonsense"), saying("nonsense"), saying("nonsense"), good]
        first = start(server.url, "--model", "eyes", OPENAI_API_KEY="sk-very-secret")
        out, err = first.communicate()
        assert first.returncode == 0, err
        assert server.requests[0][1]["authorization"] == "Bearer sk-very-secret"
        sent = f"the pictures and their facts are sent to {server.url}/v1 (model eyes)"
        assert err.splitlines()[0] == f"{sent}, with the key in OPENAI_API_KEY"
        assert "2 dialogues of the teacher eyes, 0 of them from an earlier run" in out
        assert "left out: 1 of the teacher's dialogues" in out and "no complete JSON" in out
        second = start(server.url, "--model", "eyes", "--json", OPENAI_API_KEY="sk-very-secret")
        answer = json.loads(second.communicate()[0])
        assert len(server.requests) == 6
        third = start("http://127.0.0.1:1", "--model", "eyes")
        out, err = third.communicate()
        assert third.returncode == 0 and "sent to" not in err
    assert (answer["rows"], answer["teacher"], answer["taught"], answer["left_out"]) == (12, "eyes", 3, 0)
    rows = [json.loads(line) for line in (tmp_path / "qa.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and all(row["images"] == ["robot.png"] for row in rows)
    assert all(row["messages"][0]["content"].startswith("<image>\n") for row in rows)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"sk-very" in path.read_bytes()]


def test_ctrl_c_keeps_finished_dialogues(start, tmp_path):
    with serving() as server:
        server.script, server.otherwise = [good], silent
        process = start(server.url, "--model", "eyes")
        while len(server.requests) < 2:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
        assert process.returncode == 130
        assert "1 of 3 teacher dialogues are in qa.jsonl.teacher.jsonl" in err and "Traceback" not in err
        assert not (tmp_path / "qa.jsonl").exists()
        server.otherwise = good
        out, err = start(server.url, "--model", "eyes").communicate()
        assert "3 dialogues of the teacher eyes, 1 of them from an earlier run" in out, err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "eyes"], "refuses the API key in MY_KEY (401)"),
        ([], "--model: is missing"),
        (["--model", "eyes", "--api-key-env", "NOT_THERE"], "--api-key-env NOT_THERE: that variable is not set"),
    ],
)
def test_teacher_errors_are_one_sentence(start, tmp_path, words, told):
    with serving() as server:
        server.otherwise = failing(401)
        if words == ["--model", "eyes"]:
            words = [*words, "--api-key-env", "MY_KEY"]
        process = start(server.url, *words, MY_KEY="sk-very-secret")
        out, err = process.communicate()
    assert process.returncode == 2 and out == "" and "Traceback" not in err and "sk-very" not in err
    assert told in err.splitlines()[-1] and err.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "qa.jsonl").exists()


@pytest.fixture(scope="module")
def tiny_llava(tmp_path_factory):
    """A LLaVA with random weights, its processor and a chat template, as `transformers serve` loads it."""
    import torch
    from tiny import make_tokenizer
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    folder = tmp_path_factory.mktemp("models") / "tiny-llava"
    words = make_tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    language = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = LlavaConfig(
        vision_config=vision, text_config=language, image_token_index=words.convert_tokens_to_ids("<image>")
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    template = (
        "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
        "assistant: "
    )
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=28),
        tokenizer=words,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_real_server_with_a_random_model(start, tiny_llava, tmp_path):
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(tiny_llava)]
    log = (tmp_path / "server.log").open("wb")
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(
        [*command, "--device", "cpu", "--host", "127.0.0.1", "--port", port], stdout=log, stderr=log, env=environment
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server)
        process = start(f"http://127.0.0.1:{port}", "--model", str(tiny_llava), "--json")
        out, err = process.communicate(timeout=300)
    finally:
        server.terminate()
        server.wait()
        log.close()
    served = (tmp_path / "server.log").read_text()
    assert process.returncode == 0, err + served
    answer = json.loads(out)
    assert (answer["rows"], answer["taught"], answer["left_out"]) == (6, 0, 3)
    assert served.count('"POST /v1/chat/completions HTTP/1.1" 200') == 9, served


def _wait_for(url, server):
    from urllib.error import URLError
    from urllib.request import urlopen

    for _ in range(300):
        try:
            urlopen(url, timeout=1).close()
            return
        except (URLError, TimeoutError):
            assert server.poll() is None, "the server ended before it served"
            time.sleep(0.5)
    raise AssertionError("the server run_json not come up")
