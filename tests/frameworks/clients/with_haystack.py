import json

from haystack.components.agents import Agent
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage, ImageContent
from haystack.tools import create_tool_from_function
from haystack_integrations.components.generators.anthropic import AnthropicChatGenerator
from pydantic import BaseModel
from scenarios import API, MODEL, PNG, get_weather, run

Generator = AnthropicChatGenerator if API == "messages" else OpenAIChatGenerator


class City(BaseModel):
    name: str
    population: int


async def ask(prompt, **more):
    message = prompt if isinstance(prompt, ChatMessage) else ChatMessage.from_user(prompt)
    return (await Generator(model=MODEL, **more).run_async([message]))["replies"][0].text


async def streamed(prompt):
    pieces = []

    async def take(chunk):
        pieces.append(chunk.content or "")

    await Generator(model=MODEL).run_async([ChatMessage.from_user(prompt)], streaming_callback=take)
    return pieces


async def tools(prompt):
    agent = Agent(chat_generator=Generator(model=MODEL), tools=[create_tool_from_function(get_weather)])
    return (await agent.run_async(messages=[ChatMessage.from_user(prompt)]))["last_message"].text


async def structured(prompt):
    return json.loads(await ask(prompt, generation_kwargs={"response_format": City}))


async def image(prompt):
    picture = ImageContent(base64_image=PNG, mime_type="image/png")
    return await ask(ChatMessage.from_user(content_parts=[prompt, picture]))


run(ask, streamed=streamed, tools=tools, structured=structured, image=image)
