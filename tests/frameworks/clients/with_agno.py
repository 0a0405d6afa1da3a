import base64

from agno.agent import Agent
from agno.media import Image
from agno.models.anthropic import Claude
from agno.models.openai import OpenAIChat
from pydantic import BaseModel
from scenarios import API, MODEL, PNG, get_weather, run


class City(BaseModel):
    name: str
    population: int


def agent(**more):
    return Agent(model=Claude(id=MODEL) if API == "messages" else OpenAIChat(id=MODEL), **more)


async def ask(prompt, **more):
    return (await agent().arun(prompt, **more)).content


async def streamed(prompt):
    return [event.content async for event in agent().arun(prompt, stream=True) if event.content]


async def tools(prompt):
    return (await agent(tools=[get_weather]).arun(prompt)).content


async def structured(prompt):
    return (await agent(output_schema=City).arun(prompt)).content.model_dump()


async def image(prompt):
    return await ask(prompt, images=[Image(content=base64.b64decode(PNG), format="png")])


run(ask, streamed=streamed, tools=tools, structured=structured, image=image)
