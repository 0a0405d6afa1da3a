import base64

from ag2 import Agent, ImageInput, MemoryStream
from ag2.config import AnthropicConfig, OpenAIConfig
from ag2.events import ModelMessageChunk
from pydantic import BaseModel
from scenarios import API, MODEL, PNG, get_weather, run


class City(BaseModel):
    name: str
    population: int


def agent(*, streaming=False, **more):
    config = (AnthropicConfig if API == "messages" else OpenAIConfig)(model=MODEL, streaming=streaming)
    return Agent("assistant", prompt="You answer questions.", config=config, **more)


async def ask(*prompt):
    return (await agent().ask(*prompt)).body


async def streamed(prompt):
    stream, pieces = MemoryStream(), []
    stream.where(ModelMessageChunk).subscribe(lambda chunk: pieces.append(chunk.content))
    await agent(streaming=True).ask(prompt, stream=stream)
    return pieces


async def tools(prompt):
    return (await agent(tools=[get_weather]).ask(prompt)).body


async def structured(prompt):
    return (await (await agent(response_schema=City).ask(prompt)).content()).model_dump()


async def image(prompt):
    return await ask(prompt, ImageInput(data=base64.b64decode(PNG), media_type="image/png"))


run(ask, streamed=streamed, tools=tools, structured=structured, image=image)
