from claude_agent_sdk import (
    ClaudeAgentOptions,
    ResultMessage,
    StreamEvent,
    create_sdk_mcp_server,
    query,
    tool,
)
from scenarios import PNG, get_weather, run

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "population": {"type": "integer"}},
    "required": ["name", "population"],
    "additionalProperties": False,
}


async def messages(prompt, **options):
    return [message async for message in query(prompt=prompt, options=ClaudeAgentOptions(**options))]


async def result(prompt, **options):
    said = (await messages(prompt, **options))[-1]
    assert isinstance(said, ResultMessage)
    return said


async def ask(prompt):
    return (await result(prompt)).result


async def streamed(prompt):
    events = [
        each.event for each in await messages(prompt, include_partial_messages=True) if isinstance(each, StreamEvent)
    ]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    return [delta["text"] for delta in deltas if delta["type"] == "text_delta"]


async def tools(prompt):
    @tool("get_weather", "Tell the weather in a city.", {"city": str})
    async def weather(given):
        return {"content": [{"type": "text", "text": get_weather(given["city"])}]}

    server = create_sdk_mcp_server("weather", tools=[weather])
    return (await result(prompt, mcp_servers={"weather": server}, allowed_tools=["mcp__weather__get_weather"])).result


async def structured(prompt):
    return (await result(prompt, output_format={"type": "json_schema", "schema": SCHEMA})).structured_output


async def image(prompt):
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}

    async def given():
        content = [{"type": "text", "text": prompt}, picture]
        yield {"type": "user", "message": {"role": "user", "content": content}}

    return (await result(given())).result


run(ask, streamed=streamed, tools=tools, structured=structured, image=image)
