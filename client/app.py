"""The ClientApp stub: hands the server's bytes to the site's door and the door's bytes back to the server.

The code that a SuperNode runs comes from the server, so it cannot protect a hospital; what protects it is behind the
door. This stub therefore opens no data, imports no torch, and turns every failure into a generic code, because Flower
would send the text of an exception to the server, which stores it.
"""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from equipoise.client.door import introduce, open_door, report_failure
from equipoise.common.errors import EquipoiseError
from equipoise.envelope import INTERNAL, get_bytes, put_bytes, put_code, put_hello

app = ClientApp()


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Name of the site and version of the code behind its door; asks for no release."""
    return _answer(message, context, lambda: put_hello(*introduce(context.node_config)))


@app.query("release")
def release(message: Message, context: Context) -> Message:
    """The door's reply to the request in `message`, or a code."""
    return _answer(message, context, lambda: _through_door(message, context))


def _through_door(message: Message, context: Context) -> RecordDict:
    request = get_bytes("request", message.content)
    return put_bytes("reply", open_door(context.node_config).answer(request))


def _answer(message: Message, context: Context, work: Callable[[], RecordDict]) -> Message:
    try:
        content = work()
    except Exception as error:  # whatever it says may be about a patient: only a code of a closed set may leave
        report_failure(context.node_config, error)
        content = put_code(type(error).code if isinstance(error, EquipoiseError) else INTERNAL)
    return Message(content, reply_to=message)
