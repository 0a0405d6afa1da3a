"""Scripts that run inside pods as agents: unmodified SDK scripts, and a prelude of a few functions for small ones."""

from __future__ import annotations

# Standard library alone: starts in a fraction of the time that an SDK takes.
PRELUDE = """
import json, os, sys, threading, time, urllib.error, urllib.request

def post(url, body, timeout=60):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())

def body(text, tokens=50, **more):
    return {"model": os.environ["ALMONER_MODEL"], "messages": [{"role": "user", "content": text}],
            "max_tokens": tokens, **more}

def chat(text, tokens=50, timeout=60, **more):
    return post(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body(text, tokens, **more), timeout)

def given():
    with open(os.environ["ALMONER_INPUT_FILE"], encoding="utf-8") as file:
        return file.read()

def answer(text):
    with open(os.environ["ALMONER_OUTPUT_FILE"], "w", encoding="utf-8") as file:
        file.write(text if isinstance(text, str) else json.dumps(text))
"""

OPENAI_SDK = """
import os
import openai

question = open(os.environ["ALMONER_INPUT_FILE"], encoding="utf-8").read()
reply = openai.OpenAI().chat.completions.create(
    model=os.environ["ALMONER_MODEL"], messages=[{"role": "user", "content": question}], max_tokens=50
)
stream = openai.OpenAI().chat.completions.create(
    model=os.environ["ALMONER_MODEL"], messages=[{"role": "user", "content": question}], max_tokens=50, stream=True
)
text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
with open(os.environ["ALMONER_OUTPUT_FILE"], "w", encoding="utf-8") as output:
    output.write(reply.choices[0].message.content + "|" + text)
"""

ANTHROPIC_SDK = """
import os
import anthropic

question = open(os.environ["ALMONER_INPUT_FILE"], encoding="utf-8").read()
client = anthropic.Anthropic()
asked = {"model": os.environ["ALMONER_MODEL"], "max_tokens": 50, "messages": [{"role": "user", "content": question}]}
reply = client.messages.create(**asked)
with client.messages.stream(**asked) as stream:
    text = "".join(stream.text_stream)
with open(os.environ["ALMONER_OUTPUT_FILE"], "w", encoding="utf-8") as output:
    output.write(reply.content[0].text + "|" + text)
"""
