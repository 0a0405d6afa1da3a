import base64

from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent
from scenarios import API, MODEL, PNG, get_weather, run

KINDS = {"chat": "openai-chat", "responses": "openai-responses", "messages": "anthropic"}
model = f"{KINDS[API]}:{MODEL}"


class City(BaseModel):
    name: str
    population: int


async def ask(prompt):
    return (await Agent(model).run(prompt)).output


async def streamed(prompt):
    async with Agent(model).run_stream(prompt) as told:
        return [piece async for piece in told.stream_text(delta=True, debounce_by=None)]


async def tools(prompt):
    return (await Agent(model, tools=[get_weather]).run(prompt)).output


async def structured(prompt):
    return (await Agent(model, output_type=City).run(prompt)).output.model_dump()


async def image(prompt):
    return await ask([prompt, BinaryContent(data=base64.b64decode(PNG), media_type="image/png")])


run(ask, streamed=streamed, tools=tools, structured=structured, image=image)
