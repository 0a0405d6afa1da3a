from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import anthropic
import openai
import pytest

from almoner_dev.processes import free_port
from almoner_dev.scripted import Reply, Script, ScriptedProvider, ToolCall, Usage
from tests.support.polling import until

EXACT = Usage(input_tokens=120, output_tokens=34, cached_input_tokens=100, reasoning_tokens=7)
CALLS = (ToolCall(name="calculator", arguments={"a": 1, "b": [2, "ü"]}), ToolCall(name="other"))


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


def openai_client(provider: ScriptedProvider, **more: float) -> openai.OpenAI:
    return openai.OpenAI(base_url=provider.base_url + "/v1", api_key="key", max_retries=0, **more)  # type: ignore[arg-type]


def anthropic_client(provider: ScriptedProvider) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=provider.base_url, api_key="key", max_retries=0)


def test_openai_text_and_usage(provider: ScriptedProvider) -> None:
    provider.load([Reply(text="four is the answer", usage=EXACT, stop="length")])
    answer = openai_client(provider).chat.completions.create(
        model="m", messages=[{"role": "user", "content": "2+2"}], n=2
    )
    assert [choice.message.content for choice in answer.choices] == ["four is the answer"] * 2
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (120, 34, 154)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 100
    assert provider.requests[-1]["headers"]["authorization"] == "Bearer key"
    assert provider.requests[-1]["body"]["n"] == 2


def test_openai_stream_with_tool_calls_and_usage(provider: ScriptedProvider) -> None:
    provider.load([Reply(tool_calls=CALLS, usage=EXACT)])
    chunks = list(
        openai_client(provider).chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "go"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    arguments: dict[int, str] = {}
    names: dict[int, str] = {}
    for chunk in chunks:
        for call in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            assert call.function is not None
            arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
            names[call.index] = names.get(call.index, "") + (call.function.name or "")
    assert names == {0: "calculator", 1: "other"}
    assert json.loads(arguments[0]) == {"a": 1, "b": [2, "ü"]}
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 34


@pytest.mark.parametrize("asked", [True, False])
def test_openai_stream_tells_usage_only_where_it_is_asked_for_and_scripted(
    provider: ScriptedProvider, asked: bool
) -> None:
    provider.load([Reply(text="a b c", usage=None if asked else EXACT)])
    chunks = list(
        openai_client(provider).chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "go"}],
            stream=True,
            stream_options={"include_usage": asked},
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "a b c"
    assert all(chunk.usage is None for chunk in chunks)


def test_anthropic_text_tools_and_usage(provider: ScriptedProvider) -> None:
    provider.load([Reply(text="hello there", usage=EXACT), Reply(tool_calls=CALLS)])
    client = anthropic_client(provider)
    answer = client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}])
    assert answer.content[0].type == "text"
    assert (answer.usage.input_tokens, answer.usage.cache_read_input_tokens, answer.usage.output_tokens) == (
        20,
        100,
        34,
    )
    tools = client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}])
    assert tools.stop_reason == "tool_use"
    assert [block.type for block in tools.content] == ["tool_use", "tool_use"]


@pytest.mark.parametrize("calls", [(), CALLS])
def test_anthropic_stream_accumulates_to_the_whole(provider: ScriptedProvider, calls: tuple[ToolCall, ...]) -> None:
    provider.load([Reply(text="one two\nthree", tool_calls=calls, usage=EXACT)])
    with anthropic_client(provider).messages.stream(
        model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}]
    ) as stream:
        final = stream.get_final_message()
    assert final.usage.output_tokens == 34
    if calls:
        assert [b.input for b in final.content if b.type == "tool_use"] == [{"a": 1, "b": [2, "ü"]}, {}]
    else:
        assert [b.text for b in final.content if b.type == "text"] == ["one two\nthree"]


@pytest.mark.parametrize(
    ("status", "openai_error", "anthropic_error"),
    [
        (429, openai.RateLimitError, anthropic.RateLimitError),
        (500, openai.InternalServerError, anthropic.InternalServerError),
        (401, openai.AuthenticationError, anthropic.AuthenticationError),
    ],
)
def test_errors_are_those_of_the_sdk(
    provider: ScriptedProvider, status: int, openai_error: type[Exception], anthropic_error: type[Exception]
) -> None:
    provider.load([Reply(status=status, message="by script", headers={"retry-after": "7"})])
    with pytest.raises(openai_error, match="by script") as raised:
        openai_client(provider).chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert getattr(raised.value, "response").headers["retry-after"] == "7"  # noqa: B009 - typed as Exception
    with pytest.raises(anthropic_error, match="by script"):
        anthropic_client(provider).messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}])


def test_a_broken_stream_breaks(provider: ScriptedProvider) -> None:
    provider.load([Reply(text="a b c d e", break_after=3)])
    seen: list[str] = []

    def read() -> None:
        stream = openai_client(provider).chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], stream=True
        )
        seen.extend(chunk.choices[0].delta.content or "" for chunk in stream)

    with pytest.raises(openai.APIConnectionError):
        read()
    assert "".join(seen) == "a b"


def test_a_hanging_reply_is_the_clients_timeout(provider: ScriptedProvider) -> None:
    provider.load([Reply(hang=True)])
    began = time.monotonic()
    with pytest.raises(openai.APITimeoutError):
        openai_client(provider, timeout=0.3).chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}]
        )
    assert time.monotonic() - began < 5


def test_latency_is_at_least_what_the_script_says(provider: ScriptedProvider) -> None:
    provider.load([Reply(latency_ms=200)])
    client = openai_client(provider)
    began = time.monotonic()
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize(
    ("then", "expected"), [("last", ["a", "b", "b"]), ("cycle", ["a", "b", "a"]), ("error", ["a", "b", "500"])]
)
def test_what_comes_after_the_last_reply(then: str, expected: list[str]) -> None:
    script = Script.model_validate({"replies": [{"text": "a"}, {"text": "b"}], "then": then})
    with ScriptedProvider(script) as provider:
        client = openai_client(provider)
        got = []
        for _ in range(3):
            try:
                answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
                got.append(answer.choices[0].message.content)
            except openai.InternalServerError as error:
                got.append(str(error.status_code))
    assert got == expected


def test_a_rule_answers_what_it_matches_and_is_not_used_up(provider: ScriptedProvider) -> None:
    provider.load([Reply(text="first"), Reply(match="weather", text="rain")])
    client = openai_client(provider)
    asked = ["weather?", "other", "the weather"]
    got = [
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])
        .choices[0]
        .message.content
        for text in asked
    ]
    assert got == ["rain", "first", "rain"]


def test_requests_without_what_they_need_are_refused(provider: ScriptedProvider) -> None:
    request = urllib.request.Request(provider.base_url + "/v1/messages", b'{"model": "m"}', method="POST")
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=5)
    assert raised.value.code == 400
    assert "messages" in json.loads(raised.value.read())["error"]["message"]


def test_command_line_serves_a_script_and_takes_more(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"replies": [{"text": "from the file"}]}))
    port = free_port()
    command = [sys.executable, "-m", "almoner_dev.scripted", "--port", str(port), "--script", str(script)]
    with subprocess.Popen(command) as child:
        try:
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0)
            answer = until(
                lambda: client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}]),
                10,
                "the scripted provider",
                retry_on=(openai.APIConnectionError,),
            )
            assert answer.choices[0].message.content == "from the file"
            add = urllib.request.Request(
                f"http://127.0.0.1:{port}/scripted/replies", b'[{"text": "more"}]', method="POST"
            )
            urllib.request.urlopen(add, timeout=5).close()
            again = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
            assert again.choices[0].message.content == "more"
        finally:
            child.terminate()


def test_a_script_with_an_unknown_field_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text('{"replies": [{"txt": "x"}]}')
    command = [sys.executable, "-m", "almoner_dev.scripted", "--port", "1", "--script", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "replies.0.txt" in done.stderr


@pytest.mark.parametrize("calls", [(), CALLS], ids=["text", "tools"])
def test_openais_responses_plain_and_streamed_are_the_same(calls: tuple[ToolCall, ...]) -> None:
    usage = Usage(input_tokens=11, output_tokens=7, cached_input_tokens=3, reasoning_tokens=2)
    reply = Reply(text="one two three", tool_calls=calls, usage=usage)
    with (
        ScriptedProvider([reply]) as provider,
        openai.OpenAI(base_url=f"{provider.base_url}/v1", api_key="x", max_retries=0) as client,
    ):
        plain = client.responses.create(model="m", input="hi")
        with client.responses.stream(model="m", input="hi") as events:
            deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
            streamed = events.get_final_response()
    for answer in (plain, streamed):
        assert answer.usage is not None
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (11, 7)
        assert answer.usage.input_tokens_details.cached_tokens == 3
        assert answer.usage.output_tokens_details.reasoning_tokens == 2
        assert answer.output_text == ("" if calls else "one two three")
        asked = [json.loads(item.arguments) for item in answer.output if item.type == "function_call"]
        assert asked == [call.arguments for call in calls]
    assert deltas == ([] if calls else ["one", " two", " three"])


def test_a_function_may_choose_replies_and_leave_others_to_the_script() -> None:
    def choose(path: str, body: dict[str, object]) -> Reply | None:
        return Reply(text=f"{path} of {body['model']}") if body["model"] == "chosen" else None

    with (
        ScriptedProvider([Reply(text="scripted")], choose=choose) as provider,
        openai.OpenAI(base_url=f"{provider.base_url}/v1", api_key="x", max_retries=0) as client,
    ):
        texts = [client.responses.create(model=model, input="hi").output_text for model in ("chosen", "other")]
        assert texts == ["/v1/responses of chosen", "scripted"]
        assert [reply.text for reply in provider.replies] == texts
