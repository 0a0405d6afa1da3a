from itertools import pairwise

import instructor
from instructor.processing.multimodal import Image
from pydantic import BaseModel
from scenarios import API, MODEL, PNG_URL, run

client = instructor.from_provider(f"{'anthropic' if API == 'messages' else 'openai'}/{MODEL}", async_client=True)


class City(BaseModel):
    name: str
    population: int


class Answer(BaseModel):
    text: str


async def create(content, model, **more):
    messages = [{"role": "user", "content": content}]
    return await client.create(response_model=model, messages=messages, max_tokens=1000, **more)


async def ask(content):
    return (await create(content, Answer)).text


async def streamed(prompt):
    told = client.create_partial(response_model=Answer, messages=[{"role": "user", "content": prompt}], max_tokens=1000)
    texts = [""] + [partial.text or "" async for partial in told]
    return [after.removeprefix(before) for before, after in pairwise(texts)]


async def structured(prompt):
    return (await create(prompt, City)).model_dump()


async def image(prompt):
    return await ask([prompt, Image.from_base64(PNG_URL)])


run(ask, streamed=streamed, structured=structured, image=image)
