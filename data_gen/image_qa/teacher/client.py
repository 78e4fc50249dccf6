"""Client of an OpenAI-compatible chat endpoint: requests about pictures, error messages."""

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError

from data_gen.image_qa.teacher.replies import InvalidReply
from tuning.errors import ConfigError, DeviceError, KitError

if TYPE_CHECKING:
    import openai

log = logging.getLogger("twinlens")


@dataclass(frozen=True, slots=True)
class Teacher:
    """A teacher model and its request settings.

    Args:
        url: base URL, without `/chat/completions`.
        model: name on the server.
        api_key_env: environment variable of the API key; `key` is its value, None if unset.
        timeout: in seconds.
        retries: of a failed request, with exponential backoff or the Retry-After of the server.
        attempts: requests for one dialogue; each prompt names the error of the previous reply.
        max_tokens: of the reply.
    """

    url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    key: str | None = field(default=None, repr=False)
    timeout: float = 300.0
    retries: int = 4
    attempts: int = 3
    max_tokens: int = 4096


def make_teacher(url: str, model: str, api_key_env: str, key: str | None) -> Teacher:
    """A teacher with checked URL and key.

    Args:
        url: of the server; `/v1` is added if it has no path, `/chat/completions` is removed.
        key: value of the environment variable `api_key_env`.

    Raises:
        ConfigError: the URL is not valid, or contains a password, which the dataset card would record.
    """
    wrong_url = f"--teacher {url}: is not the address of a server; write it as http://localhost:8000/v1."
    try:
        parts = urlsplit(url)
        host, secret, _ = parts.hostname, parts.password or parts.username, parts.port
    except ValueError:
        raise ConfigError(wrong_url) from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ConfigError(wrong_url)
    if secret:
        raise ConfigError("--teacher: contains a name or password; use an environment variable (--api-key-env).")
    key = (key or "").strip() or None
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"--api-key-env {api_key_env}: that variable contains characters that no API key has; set it again."
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return Teacher(f"{parts.scheme}://{parts.netloc}{path}", model, api_key_env, key)


def connect(teacher: Teacher) -> "openai.OpenAI":
    """The client; no request is sent yet. Logs what will be sent to which server.

    Raises:
        ConfigError: its package is not installed.
    """
    try:
        import openai
    except ImportError as error:
        raise ConfigError(
            "--teacher: needs the package openai; install it with `pip install 'twinlens[teacher]'`."
        ) from error
    key = f", with the key in {teacher.api_key_env}" if teacher.key else ""
    log.info("the pictures and their facts are sent to %s (model %s)%s", teacher.url, teacher.model, key)
    return openai.OpenAI(
        base_url=teacher.url,
        api_key=teacher.key or "none",  # the client requires a value; without a key, no header is sent
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


def request_reply(client: "openai.OpenAI", teacher: Teacher, uri: str, prompt: str, seed: int) -> str:
    """The reply of the teacher to a picture (data URI) and a prompt.

    Raises:
        InvalidReply: the reply is empty or was cut off.
        ConfigError, DeviceError: the request failed after all retries.
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
            max_completion_tokens=teacher.max_tokens,
            extra_headers={} if teacher.key else {"Authorization": openai.Omit()},
        )
    except openai.APIError as error:
        raise _to_kit_error(error, teacher) from error
    try:
        first = _Completion.model_validate_json(response.text).choices[0]
    except ValidationError as error:
        raise ConfigError(
            f"{teacher.url}: answers, but not as an OpenAI-compatible chat endpoint; check --teacher."
        ) from error
    if first.finish_reason == "length":
        raise InvalidReply("the reply was cut off because it was too long; write shorter")
    if not first.message.content:
        raise InvalidReply("the reply was empty")
    return first.message.content


def _to_kit_error(error: "openai.APIError", teacher: Teacher) -> KitError:
    """One sentence with the fix; never with the key."""
    import openai

    url, key_name = teacher.url, teacher.api_key_env
    if isinstance(error, openai.APITimeoutError):
        return DeviceError(
            f"{url}: did not answer within {teacher.timeout:g} seconds, {teacher.retries + 1} times; check the server, "
            "then run the same command again."
        )
    if not isinstance(error, openai.APIStatusError):
        return DeviceError(f"{url}: cannot be reached ({error.__cause__ or error}); start the server or fix --teacher.")
    code, message = error.status_code, _server_message(error, teacher)
    if code in (401, 403) and teacher.key is None:
        return ConfigError(
            f"{url}: needs an API key ({code}) and {key_name} is not set; set it, or give another variable with "
            "--api-key-env."
        )
    if code in (401, 403):
        return ConfigError(f"{url}: refuses the API key in {key_name} ({code}); set that variable again.")
    if code == 404:
        return ConfigError(f"{url}: has no model {teacher.model} (404{message}); check --model and --teacher.")
    if code == 429:
        return DeviceError(f"{url}: allows fewer requests (429{message}); wait, then run the same command again.")
    if code >= 500:
        return DeviceError(f"{url}: fails ({code}{message}); read its log, then run the same command again.")
    return ConfigError(
        f"{url}: refuses the request ({code}{message}); give a --model that the server has and that accepts pictures."
    )


def _server_message(error: "openai.APIStatusError", teacher: Teacher) -> str:
    """The error message of the server on one line, at most 200 characters, without the key."""
    body: object = error.body
    fields = cast(dict[str, Any], body) if isinstance(body, dict) else {}
    message = " ".join(str(fields.get("message") or fields.get("detail") or error.message).split())
    if teacher.key:
        message = message.replace(teacher.key, "***")
    return f": {message[:200]}" if message else ""
