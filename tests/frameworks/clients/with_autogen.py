from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.messages import ModelClientStreamingChunkEvent, MultiModalMessage
from autogen_core import Image
from autogen_ext.models.anthropic import AnthropicChatCompletionClient
from autogen_ext.models.openai import OpenAIChatCompletionClient
from pydantic import BaseModel
from scenarios import API, MODEL, PNG, get_weather, run

INFO = {
    "vision": True,
    "function_calling": True,
    "json_output": True,
    "structured_output": True,
    "family": "unknown",
}


class City(BaseModel):
    name: str
    population: int


def agent(**more):
    client = AnthropicChatCompletionClient if API == "messages" else OpenAIChatCompletionClient
    return AssistantAgent("assistant", model_client=client(model=MODEL, model_info=INFO), **more)


async def ask(task):
    return (await agent().run(task=task)).messages[-1].content


async def streamed(prompt):
    told = agent(model_client_stream=True).run_stream(task=prompt)
    return [event.content async for event in told if isinstance(event, ModelClientStreamingChunkEvent)]


async def tools(prompt):
    return (await agent(tools=[get_weather], reflect_on_tool_use=True).run(task=prompt)).messages[-1].content


async def structured(prompt):
    return (await agent(output_content_type=City).run(task=prompt)).messages[-1].content.model_dump()


async def image(prompt):
    picture = Image.from_base64(PNG)
    return await ask(MultiModalMessage(content=[prompt, picture], source="user"))


run(ask, streamed=streamed, tools=tools, structured=structured, image=image)
