"""The command line of Toka, of a process whose model calls are counted: `python counted_toka.py LEDGER ARGUMENT...`.

Before the scripted model answers, the key of the call and a hash of what it was told are appended to LEDGER.
"""

from __future__ import annotations

import hashlib
import os
import sys

from toka.cli.main import main
from toka.llm.model import ModelReply, ModelRequest
from toka.llm.scripted import ScriptedModel

LEDGER = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)


def counted() -> None:
    answer = ScriptedModel.request

    async def request(self: ScriptedModel, request: ModelRequest) -> ModelReply:
        told = hashlib.sha256(repr(request.messages).encode()).hexdigest()
        os.write(LEDGER, f"{request.key} {request.agent} {told}\n".encode())
        return await answer(self, request)

    ScriptedModel.request = request


if __name__ == "__main__":
    counted()
    main(sys.argv[2:])
