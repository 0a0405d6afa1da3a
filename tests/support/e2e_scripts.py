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

# Calls as often as its input says ({"calls", "tokens", "threads", "pause"}) or until it is refused for good; tells what
# came of each call. Exits with the code that says "budget exhausted" where it was refused and the input says "strict".
SPENDER = """
asked = json.loads(given())
results = []

def work():
    for _ in range(asked.get("calls", 1)):
        status, said = chat(asked.get("text", "spend"), asked.get("tokens", 50))
        results.append([status, "" if status == 200 else said["error"]["message"]])
        if status != 200:
            return
        time.sleep(asked.get("pause", 0))

threads = [threading.Thread(target=work) for _ in range(asked.get("threads", 1))]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
answer(results)
refused = [message for status, message in results if status != 200]
if refused and asked.get("strict"):
    print(refused[0], file=sys.stderr)
    sys.exit(68)
"""

# Plain calls, streams read to the end, and streams whose reader hangs up after the first piece; the input says how many
# rounds. Never mind what is refused.
RUDE = """
rounds = json.loads(given())["rounds"]
results = {"plain": 0, "stream": 0, "hung up": 0, "refused": 0}

def stream(hang_up):
    more = body("rude", 40, stream=True, stream_options={"include_usage": True})
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", json.dumps(more).encode(),
                                     {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        if hang_up:
            reply.readline()
            return
        reply.read()

def work(kind):
    for _ in range(rounds):
        try:
            if kind == "plain":
                if chat("rude", 40)[0] != 200:
                    results["refused"] += 1
                    continue
            else:
                stream(kind == "hung up")
            results[kind] += 1
        except urllib.error.HTTPError:
            results["refused"] += 1

threads = [threading.Thread(target=work, args=(kind,)) for kind in ("plain", "stream", "hung up")]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
answer(results)
"""
