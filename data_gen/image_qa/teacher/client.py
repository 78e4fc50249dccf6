"""Asking an OpenAI-compatible chat endpoint about a picture, and saying plainly why that failed."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError

from data_gen.image_qa.teacher.replies import Unusable
from tuning.errors import ConfigError, DeviceError, KitError

if TYPE_CHECKING:
    import openai


@dataclass(frozen=True, slots=True)
class Teacher:
    """Which model is asked, and how patiently.

    Args:
        url: that `/chat/completions` follows.
        model: as the server names it.
        key_name: environment variable that holds the API key; `key` is what it holds, None where nothing.
        timeout: seconds that the server may be silent.
        retries: of a request that failed on its way, with growing pauses or the pause that the server asks for.
        attempts: at one dialogue, each told what was wrong with the one before.
        longest: answer, in tokens.
    """

    url: str
    model: str
    key_name: str = "OPENAI_API_KEY"
    key: str | None = field(default=None, repr=False)
    timeout: float = 300.0
    retries: int = 4
    attempts: int = 3
    longest: int = 4096


def check_teacher(url: str, model: str, key_name: str, key: str | None) -> Teacher:
    """A teacher whose URL can be one.

    Args:
        url: of the server; without a path it gets `/v1`, and what follows that may be there or not.
        key: what the environment variable `key_name` holds.

    Raises:
        ConfigError: the URL is none, or holds a password, which would be written down with it.
    """
    try:
        parts = urlsplit(url)
        named, secret, _ = parts.hostname, parts.password or parts.username, parts.port
    except ValueError:
        parts, named, secret = urlsplit(""), None, None
    if parts.scheme not in ("http", "https") or not named or parts.query or parts.fragment:
        raise ConfigError(f"--teacher {url}: is no address of a server; write it as http://localhost:8000/v1.")
    if secret:
        raise ConfigError(
            "--teacher: holds a name or password; put the key in an environment variable (--api-key-env)."
        )
    key = (key or "").strip() or None
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ConfigError(f"--api-key-env {key_name}: that variable holds signs that no API key has; set it anew.")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return Teacher(f"{parts.scheme}://{parts.netloc}{path}", model, key_name, key)


def connect(teacher: Teacher) -> "openai.OpenAI":
    """The client, which sends nothing yet.

    Raises:
        ConfigError: its package is not installed.
    """
    try:
        import openai
    except ImportError as error:
        raise ConfigError(
            "--teacher: needs the package openai; install it with `pip install 'twinlens[teacher]'`."
        ) from error
    return openai.OpenAI(
        base_url=teacher.url,
        api_key=teacher.key or "none",  # the client wants one; without a key, no header is sent
        max_retries=teacher.retries,
        timeout=openai.Timeout(teacher.timeout, connect=min(teacher.timeout, 10.0)),
    )


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


def ask(client: "openai.OpenAI", teacher: Teacher, uri: str, prompt: str, seed: int) -> str:
    """What the teacher says.

    Raises:
        Unusable: nothing, or only the beginning of it.
        ConfigError, DeviceError: the request failed for good.
    """
    import openai

    try:
        response = client.chat.completions.with_raw_response.create(
            model=teacher.model,
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": uri}},
                        {"type": "text", "text": prompt},
                    ],
                }
            ],
            seed=seed,
            max_completion_tokens=teacher.longest,
            extra_headers={} if teacher.key else {"Authorization": openai.Omit()},
        )
    except openai.APIError as error:
        raise _for_people(error, teacher) from error
    try:
        first = _Completion.model_validate_json(response.text).choices[0]
    except ValidationError as error:
        raise ConfigError(
            f"{teacher.url}: answers, but not as an OpenAI-compatible chat endpoint does; check --teacher."
        ) from error
    if first.finish_reason == "length":
        raise Unusable("the reply was cut off because it was too long; write shorter")
    if not first.message.content:
        raise Unusable("the reply was empty")
    return first.message.content


def _for_people(error: "openai.APIError", teacher: Teacher) -> KitError:
    """What to change, in one sentence; the key is in none."""
    import openai

    url = teacher.url
    if isinstance(error, openai.APITimeoutError):
        return DeviceError(
            f"{url}: did not answer within {teacher.timeout:g} seconds, {teacher.retries + 1} times; see whether the "
            "server still works, then run the same command again."
        )
    if not isinstance(error, openai.APIStatusError):
        reason = str(error.__cause__ or error)
        return DeviceError(f"{url}: cannot be reached ({reason}); start the server there or mend --teacher.")
    code = error.status_code
    reason = _reason(error, teacher)
    if code in (401, 403):
        if teacher.key is None:
            return ConfigError(
                f"{url}: wants an API key ({code}) and {teacher.key_name} is not set; set it, or name another "
                "variable with --api-key-env."
            )
        return ConfigError(f"{url}: refuses the API key in {teacher.key_name} ({code}); set that variable anew.")
    if code == 404:
        return ConfigError(f"{url}: knows no model {teacher.model} (404{reason}); check --model and --teacher.")
    if code == 429:
        return DeviceError(
            f"{url}: wants fewer requests (429{reason}); wait, then run the same command again to go on."
        )
    if code >= 500:
        return DeviceError(f"{url}: fails ({code}{reason}); see its log, then run the same command again.")
    return ConfigError(
        f"{url}: refuses the request ({code}{reason}); choose a --model that the server has and that takes pictures."
    )


def _reason(error: "openai.APIStatusError", teacher: Teacher) -> str:
    """The server's own words, on one line and not many, without the key should they repeat it."""
    body: object = error.body
    told = cast(dict[str, Any], body) if isinstance(body, dict) else {}
    words = " ".join(str(told.get("message") or told.get("detail") or error.message).split())
    if teacher.key:
        words = words.replace(teacher.key, "***")
    return f": {words[:200]}" if words else ""
