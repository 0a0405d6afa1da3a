import base64

from pydantic import BaseModel
from scenarios import API, MODEL, PNG, get_weather, run
from strands import Agent, tool
from strands.models.anthropic import AnthropicModel
from strands.models.openai import OpenAIModel


class City(BaseModel):
    name: str
    population: int


def agent(**more):
    model = AnthropicModel(model_id=MODEL, max_tokens=4096) if API == "messages" else OpenAIModel(model_id=MODEL)
    return Agent(model=model, callback_handler=None, **more)


async def ask(prompt):
    return str(await agent().invoke_async(prompt)).strip()


async def streamed(prompt):
    return [event["data"] async for event in agent().stream_async(prompt) if "data" in event]


async def tools(prompt):
    return str(await agent(tools=[tool(get_weather)]).invoke_async(prompt))


async def structured(prompt):
    return (await agent().invoke_async(prompt, structured_output_model=City)).structured_output.model_dump()


async def image(prompt):
    picture = {"image": {"format": "png", "source": {"bytes": base64.b64decode(PNG)}}}
    return await ask([{"text": prompt}, picture])


run(ask, streamed=streamed, tools=tools, structured=structured, image=image)
