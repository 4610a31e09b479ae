"""A server that has every seeded checkpoint, with any options: those stand behind the name, as in `NAME?max_length=64`.

python -m tests.remote.server PORT
"""

from __future__ import annotations

import json
import sys
import threading

import uvicorn

from bge_runtime import ModelNotFoundError
from bge_runtime.serving import ServerSettings, create_app
from bge_runtime.serving.models import Asked, Models, Served
from bge_runtime.serving.settings import ModelSettings


class Every(Models):
    """Describes a model when it is asked for."""

    lock = threading.Lock()

    def find(self, name: str) -> Asked:
        model, _, options = name.partition("?")
        with self.lock:
            if name not in self.all:
                try:
                    self.all[name] = Served(ModelSettings(model=model, **json.loads(options or "{}")))
                except ValueError as error:
                    raise ModelNotFoundError(str(error)) from error
        return Asked(self.all[name], None)


def main() -> None:
    app = create_app(ServerSettings.read(models=[{"model": "BAAI/bge-small-en-v1.5"}]))
    app.state.work.models = Every([])
    app.state.work.models.find("BAAI/bge-small-en-v1.5")
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")


if __name__ == "__main__":
    main()
