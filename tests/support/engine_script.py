"""An engine as a script, for trials: it stands for `ollama serve`, with a cost of its own for every step."""

from __future__ import annotations

import textwrap

__all__ = ["ENGINE"]

ENGINE = textwrap.dedent("""\
    #!{python}
    # An engine that computes one step at a time, and serves as many requests in it as OLLAMA_NUM_PARALLEL says.
    import asyncio, json, os, sys
    slots = int(os.environ.get("OLLAMA_NUM_PARALLEL", "1"))
    if slots > 64:
        sys.exit("out of memory, says the engine")
    port = int(os.environ["OLLAMA_HOST"].split(":")[1])
    places = asyncio.Semaphore(slots)

    async def serve(reader, writer):
        head = await reader.readuntil(b"\\r\\n\\r\\n")
        if b"/api/version" in head:
            writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\nconnection: close\\r\\n\\r\\n{{}}")
        else:
            length = int([line for line in head.lower().split(b"\\r\\n") if line.startswith(b"content-length")][0][15:])
            asked = json.loads(await reader.readexactly(length))
            writer.write(b"HTTP/1.1 200 OK\\r\\nconnection: close\\r\\n\\r\\n")
            async with places:
                count = asked["options"]["num_predict"]
                for number in range(count):
                    await asyncio.sleep(0.002)
                    writer.write(json.dumps({{"message": {{"content": "x"}}, "done": False}}).encode() + b"\\n")
            writer.write(json.dumps({{"done": True, "eval_count": count}}).encode() + b"\\n")
        await writer.drain()
        writer.close()

    async def main():
        async with await asyncio.start_server(serve, "127.0.0.1", port) as server:
            await server.serve_forever()
    asyncio.run(main())
""")
