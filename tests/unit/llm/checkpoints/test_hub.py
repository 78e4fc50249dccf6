"""Downloads of models by name from a local hub: file selection, size check, pinned revision, resume, offline use."""

import json
import sys
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from llm.checkpoints.hub import describe_download, fetch, needed_files, parse_remote, pin_revision
from llm.loading import load_template, model_folder
from tuning.errors import DeviceError, ModelError

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights" * 100,
    "model.py": b"import os",
    "pytorch_model.bin": b"the same, pickled",
    "pytorch_model.bin.index.json": b'{"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}',
    "onnx/config.json": b"{}",
    "onnx/model.onnx": b"the same again",
    "README.md": b"about it",
}
NEEDED = {"config.json", "tokenizer.json", "model.safetensors"}


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def fetched(name: str, weights: bool = True) -> Path:
    remote = parse_remote(name)
    assert remote is not None
    return fetch(remote, weights)


def refusal(name: str, kind: type[Exception] = ModelError) -> str:
    with pytest.raises(kind) as caught:
        fetched(name)
    message = str(caught.value)
    assert message.startswith(f"model: {name}: ")
    return message


# --- names and files


@pytest.mark.parametrize("source", ["embedded", "./a/b", "~/a/b", "/a/b", "a/b/c", "open_clip:ViT/openai", "a", ""])
def test_paths_and_other_sources_are_no_remote_names(source: str) -> None:
    assert parse_remote(source) is None


def test_local_folder_takes_precedence_over_the_remote_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(parse_remote("owner/model@v1")) == "owner/model@v1"
    assert str(parse_remote("modelscope:owner/model")) == "modelscope:owner/model"
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert parse_remote("owner/model") is None


PATHS = st.sampled_from(
    [
        *FILES, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
        "pytorch_model-00001-of-00001.bin", "consolidated.safetensors", "tokenizer.model", "chat_template.jinja",
        "merges.txt", "training_args.bin", "tf_model.h5", "original/model.safetensors", "model.gguf",
    ]
)  # fmt: skip


@given(st.sets(PATHS))
def test_needed_files_have_one_weight_format_and_no_code(files: set[str]) -> None:
    chosen = needed_files(sorted(files), weights=True)
    assert len(set(chosen)) == len(chosen)
    assert not [file for file in chosen if file.endswith((".py", ".gguf", ".onnx", ".h5", ".md")) or "/" in file]
    kinds = {Path(file).suffix for file in chosen} & {".safetensors", ".bin"}
    assert len(kinds) <= 1
    assert "training_args.bin" not in chosen
    if {"model.safetensors", "pytorch_model.bin"} <= files:
        assert kinds == {".safetensors"}
    assert all(f"{kind}.index.json" in file for kind in kinds for file in chosen if file.endswith(".index.json"))
    settings = needed_files(sorted(files), weights=False)
    assert set(settings) <= set(chosen)
    assert not [file for file in settings if file.endswith((".safetensors", ".bin", ".index.json"))]


# --- fetching


def test_only_needed_files_are_downloaded_and_only_once(hub: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "twinlens")
    hub.publish("owner/model", FILES)
    folder = fetched("owner/model")
    assert names(folder) == NEEDED
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert "downloading 0.7 KiB in 3 files" in caplog.text
    assert "are free" in caplog.text
    hub.requests.clear()
    assert fetched("owner/model") == folder
    assert not [line for line in hub.requests if "/resolve/" in line]


def test_tokenizer_is_downloaded_without_the_weights(hub: HubServer, tiny_model: Path) -> None:
    hub.publish("owner/tiny", {file.name: file.read_bytes() for file in tiny_model.iterdir()})
    assert load_template("owner/tiny", None).stop_ids
    assert not [line for line in hub.requests if line.endswith(".safetensors")]
    assert names(model_folder("owner/tiny")) >= {"config.json", "model.safetensors"}


def test_model_with_remote_code_is_refused_before_its_weights_are_downloaded(hub: HubServer) -> None:
    config = {"model_type": "novel", "auto_map": {"AutoModelForCausalLM": "model.Novel"}}
    hub.publish("owner/novel", FILES | {"config.json": json.dumps(config).encode()})
    with pytest.raises(ModelError, match=r"'novel' needs remote code .* never runs"):
        model_folder("owner/novel")
    assert not [line for line in hub.requests if "safetensors" in line or ".py" in line]


def test_interrupted_transfer_resumes_at_its_offset(hub: HubServer) -> None:
    large = bytes(range(256)) * (24 << 12)  # 24 MiB: the client stores chunks of 10 MiB
    hub.publish("owner/large", FILES | {"model.safetensors": large})
    hub.truncations["model.safetensors"] = 1
    assert (fetched("owner/large") / "model.safetensors").read_bytes() == large
    assert hub.resumed == [("model.safetensors", 10 << 20)]


def test_downloaded_files_are_reused_after_a_failed_download(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the retries of the client
    commit = hub.publish("owner/model", FILES | {"model-00002-of-00002.safetensors": b"more"})
    hub.truncations["model.safetensors"] = 100
    assert "downloaded files are kept" in refusal("owner/model")
    assert not list(Path(constants.HF_HUB_CACHE).rglob("model.safetensors"))
    hub.truncations.clear()
    hub.requests.clear()
    assert names(fetched("owner/model")) == {*NEEDED, "model-00002-of-00002.safetensors"}
    assert {line.split("/")[-1] for line in hub.requests if f"/resolve/{commit}/" in line} == {"model.safetensors"}


def test_insufficient_disk_space_is_reported_before_the_download(hub: HubServer) -> None:
    hub.publish("owner/model", FILES)
    hub.reported_sizes["model.safetensors"] = 1 << 60
    message = refusal("owner/model", DeviceError)
    assert "the download needs 1,073,741,824.0 GiB" in message
    assert "HF_HOME" in message
    assert not [line for line in hub.requests if "/resolve/" in line]
    remote = parse_remote("owner/model")
    assert remote
    with pytest.raises(DeviceError):
        describe_download(remote)


def test_describe_download_downloads_no_file(hub: HubServer) -> None:
    hub.publish("owner/model", FILES)
    remote = parse_remote("owner/model")
    assert remote
    assert describe_download(remote).startswith("to download: 0.7 KiB in 3 files")
    assert not [line for line in hub.requests if "/resolve/" in line]
    fetch(remote)
    assert describe_download(remote) == "complete in the cache"


# --- revisions


def test_a_revision_is_pinned_to_its_commit(hub: HubServer) -> None:
    old = hub.publish("owner/model", FILES, "v1")
    new = hub.publish("owner/model", FILES | {"model.safetensors": b"newer"})
    assert (fetched("owner/model@v1") / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert (fetched("owner/model") / "model.safetensors").read_bytes() == b"newer"
    remote = parse_remote("owner/model")
    assert remote
    assert str(pin_revision(remote)) == f"owner/model@{new}"
    hub.publish("owner/model", FILES | {"model.safetensors": b"newest"})
    hub.requests.clear()
    for commit, weights in ((old, FILES["model.safetensors"]), (new, b"newer")):
        assert (fetched(f"owner/model@{commit}") / "model.safetensors").read_bytes() == weights
    assert not hub.requests, "a commit that is complete in the cache needs no request"
    assert (fetched("owner/model") / "model.safetensors").read_bytes() == b"newest"


def test_unknown_revision_is_refused(hub: HubServer) -> None:
    hub.publish("owner/model", FILES)
    assert "has no such revision" in refusal("owner/model@v9")


# --- refusals


@pytest.mark.parametrize(
    ("answer", "reason"),
    [((403, "GatedRepo"), "accept the terms"), ((401, "RepoNotFound"), "hf auth login"), ((403, None), "log in")],
)
def test_gated_or_private_model_is_refused_with_a_hint_to_log_in(
    hub: HubServer, answer: tuple[int, str | None], reason: str
) -> None:
    hub.refused["owner/private"] = answer
    assert reason in refusal("owner/private")


def test_unknown_model_is_refused(hub: HubServer) -> None:
    assert "the hub has no such model" in refusal("owner/nobody")


# --- offline


def test_complete_cache_is_used_offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.publish("owner/model", FILES)
    folder = fetched("owner/model")
    hub.publish("owner/half", FILES)
    fetched("owner/half", weights=False)
    hub.offline(monkeypatch)
    remote = parse_remote("owner/model")
    assert remote
    assert (fetched("owner/model"), describe_download(remote)) == (folder, "complete in the cache")
    assert fetched(f"owner/model@{commit}") == folder
    assert str(pin_revision(remote)) == f"owner/model@{commit}"
    assert fetched("owner/half", weights=False)
    for name in ("owner/half", "owner/never"):
        message = refusal(name)
        assert f"`hf download {name} --local-dir FOLDER`" in message


def test_complete_cache_is_used_when_the_hub_is_unreachable(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.publish("owner/model", FILES)
    folder = fetched("owner/model")
    hub.unreachable(monkeypatch)
    assert fetched("owner/model") == folder
    assert "cannot be downloaded" in refusal("owner/never")


# --- ModelScope


def test_missing_modelscope_client_is_reported(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setitem(sys.modules, "modelscope.hub.api", None)
    monkeypatch.setitem(sys.modules, "modelscope", None)
    assert 'run `pip install "modelscope>=1.30"`' in refusal("modelscope:owner/model")


def test_modelscope_client_has_the_functions_that_are_called() -> None:
    pytest.importorskip("modelscope", reason="optional")
    from modelscope.hub.api import HubApi  # type: ignore[import-not-found]
    from modelscope.hub.snapshot_download import snapshot_download  # type: ignore[import-not-found]

    assert callable(HubApi().get_model_files)
    assert callable(snapshot_download)
