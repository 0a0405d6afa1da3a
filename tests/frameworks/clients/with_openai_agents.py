from agents import Agent, Runner, function_tool, set_default_openai_api
from pydantic import BaseModel
from scenarios import API, PNG_URL, get_weather, run

# The model is that of OPENAI_DEFAULT_MODEL.
if API == "chat":
    set_default_openai_api("chat_completions")


class City(BaseModel):
    name: str
    population: int


async def ask(prompt):
    return (await Runner.run(Agent(name="greeter"), prompt)).final_output


async def streamed(prompt):
    told = Runner.run_streamed(Agent(name="greeter"), prompt)
    events = [event async for event in told.stream_events()]
    raw = [event.data for event in events if event.type == "raw_response_event"]
    return [each.delta for each in raw if each.type == "response.output_text.delta"]


async def tools(prompt):
    agent = Agent(name="forecaster", tools=[function_tool(get_weather)])
    return (await Runner.run(agent, prompt)).final_output


async def structured(prompt):
    return (await Runner.run(Agent(name="geographer", output_type=City), prompt)).final_output.model_dump()


async def image(prompt):
    content = [{"type": "input_text", "text": prompt}, {"type": "input_image", "image_url": PNG_URL, "detail": "auto"}]
    return await ask([{"role": "user", "content": content}])


run(ask, streamed=streamed, tools=tools, structured=structured, image=image)
