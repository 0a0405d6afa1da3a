import json
import os

from mistralai.client import Mistral
from pydantic import BaseModel
from scenarios import MODEL, PNG_URL, get_weather, run

# It reads no address from the environment.
client = Mistral(api_key=os.environ["OPENAI_API_KEY"], server_url=os.environ["ALMONER_METER_URL"] + "/openai")


class City(BaseModel):
    name: str
    population: int


PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


async def complete(messages, **more):
    return (await client.chat.complete_async(model=MODEL, messages=messages, **more)).choices[0].message


async def ask(content):
    return (await complete([{"role": "user", "content": content}])).content


async def streamed(prompt):
    told = await client.chat.stream_async(model=MODEL, messages=[{"role": "user", "content": prompt}])
    return [event.data.choices[0].delta.content or "" async for event in told if event.data.choices]


async def tools(prompt):
    known = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
    messages = [{"role": "user", "content": prompt}]
    first = await complete(messages, tools=known)
    messages.append(first)
    for call in first.tool_calls:
        said = get_weather(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "name": "get_weather", "content": said, "tool_call_id": call.id})
    return (await complete(messages, tools=known)).content


async def structured(prompt):
    messages = [{"role": "user", "content": prompt}]
    told = await client.chat.parse_async(model=MODEL, messages=messages, response_format=City)
    return told.choices[0].message.parsed.model_dump()


async def image(prompt):
    return await ask([{"type": "text", "text": prompt}, {"type": "image_url", "image_url": PNG_URL}])


run(ask, streamed=streamed, tools=tools, structured=structured, image=image)
