"""The Flower client: hands each message to this node's resident trainer, or answers it here where none runs.

Flower starts a process for each message. This one is all that such a process has to import before it can pass a message on, so neither
torch nor anything that needs it may be imported above `answer`.
"""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client import resident

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """`client.answers.query`."""
    return answer(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """`client.answers.train`."""
    return answer(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """`client.answers.evaluate`."""
    return answer(message, context)


@app.train("secure")
def train_secure(message: Message, context: Context) -> Message:
    """`client.answers.train_secure`."""
    return answer(message, context)


@app.query("secure")
def query_secure(message: Message, context: Context) -> Message:
    """`client.answers.query_secure`."""
    return answer(message, context)


def answer(message: Message, context: Context) -> Message:
    """The node's answer, from its trainer if one runs."""
    if reply := resident.ask(message, context):
        return reply
    from client import answers

    return answers.app(message, context)
