import json

from pydantic import BaseModel
from scenarios import API, MODEL, PNG_URL, get_weather, run
from semantic_kernel.agents import ChatCompletionAgent
from semantic_kernel.connectors.ai.anthropic import AnthropicChatCompletion
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion, OpenAIChatPromptExecutionSettings
from semantic_kernel.contents import ChatMessageContent, ImageContent, TextContent
from semantic_kernel.functions import KernelArguments, kernel_function

Service = AnthropicChatCompletion if API == "messages" else OpenAIChatCompletion


class City(BaseModel):
    name: str
    population: int


class Weather:
    @kernel_function(name="get_weather", description="Tell the weather in a city.")
    def weather(self, city: str) -> str:
        return get_weather(city)


def agent(**more):
    return ChatCompletionAgent(service=Service(ai_model_id=MODEL), name="assistant", **more)


async def ask(prompt, **more):
    return str((await agent(**more).get_response(messages=prompt)).content)


async def streamed(prompt):
    return [str(piece.content) async for piece in agent().invoke_stream(messages=prompt)]


async def tools(prompt):
    return await ask(prompt, plugins=[Weather()])


async def structured(prompt):
    settings = OpenAIChatPromptExecutionSettings(response_format=City)
    return json.loads(await ask(prompt, arguments=KernelArguments(settings=settings)))


async def image(prompt):
    items = [TextContent(text=prompt), ImageContent(data_uri=PNG_URL)]
    return await ask(ChatMessageContent(role="user", items=items))


run(ask, streamed=streamed, tools=tools, structured=structured, image=image)
