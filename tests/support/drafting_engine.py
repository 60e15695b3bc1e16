"""A llama-server as a script: a step takes a while, and drafts make steps yield more tokens, or take longer.

It answers with the words of the question, over and over. `ngram-simple` guesses three more tokens a step;
`draft-simple` one more in five times the time.
"""

from __future__ import annotations

import textwrap

__all__ = ["DRAFTING"]

DRAFTING = textwrap.dedent("""\
    #!{python}
    import asyncio, json, sys
    words = sys.argv[1:]
    if "--help" in words:
        print("--parallel N  slots (env: LLAMA_ARG_N_PARALLEL)\\n--ctx-size N  context\\n--threads N  threads")
        print("{spec}".replace("|", "\\n"))
        sys.exit()
    flags = dict(zip(words[::1], words[1::1]))
    kind = flags.get("--spec-type", "none")
    if kind == "ngram-mod":
        sys.exit("no such drafts, says the engine")
    port = int(flags["--port"])
    pause, more = {{"none": (0.004, 0), "ngram-simple": (0.004, 3), "draft-simple": (0.02, 1)}}[kind]
    last = []

    def answer(asked):
        if "messages" in asked:
            return {{"prompt": asked["messages"][-1]["content"]}}
        if "content" in asked:
            return {{"tokens": [sum(map(ord, word)) for word in asked["content"].split()]}}
        prompt, known = asked["prompt"], 0
        while known < min(len(prompt), len(last)) and prompt[known] == last[known]:
            known += 1
        last[:] = prompt
        new = max(len(prompt) - known, 1)
        return {{"timings": {{"prompt_n": new, "prompt_ms": 10.0 + 0.1 * new}}}}

    async def stream(asked, writer):
        said = asked["messages"][-1]["content"].split() * 9
        count = min(asked["max_tokens"], len(said))
        writer.write(b"content-type: text/event-stream\\r\\nconnection: close\\r\\n\\r\\n")
        sent = 0
        while sent < count:
            await asyncio.sleep(pause)
            step = said[sent : min(sent + 1 + more, count)]
            sent += len(step)
            choice = {{"index": 0, "delta": {{"content": " ".join(step) + " "}}, "finish_reason": None}}
            if sent == count:
                choice["finish_reason"] = "length"
            writer.write(b"data: " + json.dumps({{"choices": [choice]}}).encode() + b"\\n\\n")
        timings = {{"prompt_ms": 10.0, "predicted_ms": 50.0}}
        if more:
            timings.update(draft_n=count, draft_n_accepted=count // 2)
        usage = {{"prompt_tokens": len(said) // 9, "completion_tokens": count}}
        last = {{"choices": [], "usage": usage, "timings": timings}}
        writer.write(b"data: " + json.dumps(last).encode() + b"\\n\\ndata: [DONE]\\n\\n")

    async def serve(reader, writer):
        head = await reader.readuntil(b"\\r\\n\\r\\n")
        length = [line[15:] for line in head.lower().split(b"\\r\\n") if line.startswith(b"content-length")]
        asked = json.loads(await reader.readexactly(int(length[0]))) if length else {{}}
        writer.write(b"HTTP/1.1 200 OK\\r\\n")
        if b"/v1/chat" in head:
            await stream(asked, writer)
        else:
            body = json.dumps(answer(asked) if asked else {{}}).encode()
            writer.write(b"content-length: %d\\r\\nconnection: close\\r\\n\\r\\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async def main():
        async with await asyncio.start_server(serve, "127.0.0.1", port) as server:
            await server.serve_forever()
    asyncio.run(main())
""")
