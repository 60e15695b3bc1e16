"""Which prose announces a call, and which only shows one."""

from __future__ import annotations

import pytest

from velollm.toolcalls.prose import announces

ANNOUNCED = """\
Here is the function call:
I'll use the get_tides tool to check.
To answer this, I need to call the tides function.
Checking the tides now:
Calling get_tides...
Of course!
**Tool call:**
To get this information, I'll invoke get_weather:
Let's look it up.
First, I'll get the station's data.
Based on your request, I'll look up the tides in Roscoff for the next two days.
Sure, I can help with that. Let me fetch the data.
Booking a table for two at Nook.
I'll post that to #ops.
Thanks for the details! Now I can book it.
The user wants the weather. I should call get_weather.
Turning on the lights.
Updating the record with the new address.
Next, deleting the file.
Let me check the logs.
I'll read the documentation first.
I will update the configuration:
The sensor was off before. I'll read it again.
Please wait while I check.
assistant
tool_call:
我来查一下天气。
Je vais vérifier la météo.
""".splitlines()
SHOWN = """\
Here is an example of a tool call:
The JSON would look like this:
Here's what the call would be:
The API returned:
This is the configuration:
An earlier call:
It looks like this:
The following call failed:
I cannot call this tool, but it would be:
The log shows:
The format is:
You can call it like so:
The documentation says:
Should I run this?
In the previous turn I sent:
The model produced:
If you want to set the volume, use:
A typical request:
Here is the data you asked for:
The response was:
Someone else wrote:
I decided not to call the tool. It would have been:
Don't run this:
Here is a template:
Nothing to do.
According to the manual:
Result:
Output:
The config file:
What does this do?
Sure! Here's the code:
Sure, here is how you call it:
Here's how to do it:
Of course! Usage:
Let me know if you want it run:
Interesting:
""".splitlines()


@pytest.mark.parametrize("text", ANNOUNCED)
def test_announced(text: str) -> None:
    assert announces(text)


@pytest.mark.parametrize("text", SHOWN)
def test_shown(text: str) -> None:
    assert not announces(text)


def test_the_last_paragraph_decides() -> None:
    assert announces("Here is an example of JSON: {}.\n\nLet me look.")
    assert not announces("Let me explain.\n\nThe format is:")
