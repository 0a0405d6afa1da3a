from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.anthropic import Anthropic
from llama_index.llms.openai import OpenAI
from pydantic import BaseModel
from scenarios import API, MODEL, PNG, get_weather, run

llm = Anthropic(model=MODEL) if API == "messages" else OpenAI(model=MODEL)


class City(BaseModel):
    name: str
    population: int


async def ask(prompt):
    return (await llm.acomplete(prompt)).text


async def streamed(prompt):
    return [chunk.delta async for chunk in await llm.astream_complete(prompt)]


async def tools(prompt):
    agent = FunctionAgent(llm=llm, tools=[FunctionTool.from_defaults(get_weather)])
    return str(await agent.run(prompt))


async def structured(prompt):
    told = await llm.as_structured_llm(City).achat([ChatMessage(prompt)])
    return told.raw.model_dump()


async def image(prompt):
    blocks = [TextBlock(text=prompt), ImageBlock(image=PNG.encode(), image_mimetype="image/png")]
    return (await llm.achat([ChatMessage(role="user", blocks=blocks)])).message.content


run(ask, streamed=streamed, tools=tools, structured=structured, image=image)
