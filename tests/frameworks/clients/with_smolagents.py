import base64
import io
import json

from PIL import Image
from scenarios import API, MODEL, PNG, get_weather, run
from smolagents import ChatMessageStreamDelta, LiteLLMModel, OpenAIModel, ToolCallingAgent, tool

QUIET = {"verbosity_level": 0}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "population": {"type": "integer"}},
    "required": ["name", "population"],
    "additionalProperties": False,
}


def model():
    name, kind = (f"anthropic/{MODEL}", LiteLLMModel) if API == "messages" else (MODEL, OpenAIModel)
    return kind(name, retry=False)


def ask(prompt):
    return ToolCallingAgent(tools=[], model=model(), **QUIET).run(prompt)


def streamed(prompt):
    messages = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    told = model().generate_stream(messages)
    return [delta.content or "" for delta in told if isinstance(delta, ChatMessageStreamDelta)]


def tools(prompt):
    return ToolCallingAgent(tools=[tool(get_weather)], model=model(), **QUIET).run(prompt)


def structured(prompt):
    messages = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
    return json.loads(model().generate(messages, response_format=form).content)


def image(prompt):
    picture = Image.open(io.BytesIO(base64.b64decode(PNG)))
    return ToolCallingAgent(tools=[], model=model(), **QUIET).run(prompt, images=[picture])


run(ask, streamed=streamed, tools=tools, structured=structured, image=image)
