import json

from litellm import acompletion, aresponses
from pydantic import BaseModel
from scenarios import API, MODEL, PNG_URL, get_weather, run

NAME = f"anthropic/{MODEL}" if API == "messages" else f"openai/{MODEL}"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


class City(BaseModel):
    name: str
    population: int


async def completed(messages, **more):
    return (await acompletion(model=NAME, messages=messages, **more)).choices[0].message


async def ask(content):
    return (await completed([{"role": "user", "content": content}])).content


async def streamed(prompt):
    chunks = await acompletion(model=NAME, messages=[{"role": "user", "content": prompt}], stream=True)
    return [chunk.choices[0].delta.content or "" async for chunk in chunks]


async def tools(prompt):
    known = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
    messages = [{"role": "user", "content": prompt}]
    first = await completed(messages, tools=known)
    messages.append(first)
    for call in first.tool_calls:
        said = get_weather(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": said})
    return (await completed(messages, tools=known)).content


async def structured(prompt):
    told = await completed([{"role": "user", "content": prompt}], response_format=City)
    return City.model_validate_json(told.content).model_dump()


async def image(prompt):
    return await ask([{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": PNG_URL}}])


async def respond(content, **more):
    return await aresponses(model=NAME, input=content, **more)


async def respond_text(content, **more):
    return (await respond(content, **more)).output_text


async def respond_streamed(prompt):
    return [event.delta async for event in await respond(prompt, stream=True) if "output_text.delta" in event.type]


async def respond_with_tools(prompt):
    known = [{"type": "function", "name": "get_weather", "parameters": PARAMETERS}]
    given = [{"role": "user", "content": prompt}]
    first = await respond(given, tools=known)
    for call in first.output:
        given.append(call.model_dump())
        said = get_weather(**json.loads(call.arguments))
        given.append({"type": "function_call_output", "call_id": call.call_id, "output": said})
    return await respond_text(given, tools=known)


async def respond_structured(prompt):
    return City.model_validate_json(await respond_text(prompt, text_format=City)).model_dump()


async def respond_image(prompt):
    content = [{"type": "input_text", "text": prompt}, {"type": "input_image", "image_url": PNG_URL}]
    return await respond_text([{"role": "user", "content": content}])


if API == "responses":
    run(
        respond_text,
        streamed=respond_streamed,
        tools=respond_with_tools,
        structured=respond_structured,
        image=respond_image,
    )
else:
    run(ask, streamed=streamed, tools=tools, structured=structured, image=image)
