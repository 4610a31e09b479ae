"""What the server says of itself in `/openapi.json`, against what it answers: thousands of requests, right and wrong.

The name keeps this out of the default run: it needs schemathesis, in an environment of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving.conftest import EMBEDDER, HEADS, RERANKER
from tests.serving.processes import Process, running

# Of each route and each kind of data; routes that take no data have one case.
EXAMPLES = 250
FEWEST = 5000
SEED = 20
# Names that are made up are all refused alike.
NAMES = (EMBEDDER, HEADS, RERANKER, f"{EMBEDDER}:query")
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]

pytestmark = [
    pytest.mark.enable_socket,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore"),  # schemathesis' own
]


@pytest.fixture(scope="module")
def server(hub_cache, tmp_path_factory) -> Iterator[Process]:
    models = [part for name in (EMBEDDER, HEADS, RERANKER) for part in ("--model", name)]
    with running(tmp_path_factory.mktemp("server"), *models, "--quiet") as found:
        yield found


def check_every_answer_is_one_that_the_description_names(server):
    schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
    statuses: Counter[int] = Counter()
    with requests.Session() as session:
        for found in schema.get_all_operations():
            operation = found.ok()
            # What takes no body cannot be sent a wrong one.
            for mode in GenerationMode if operation.body else (GenerationMode.POSITIVE,):
                ask(operation, mode, session, statuses)
    assert statuses.total() >= FEWEST, statuses
    assert not [status for status in statuses if status >= 500], statuses
    # Right ones are not refused alike.
    assert statuses[200] >= FEWEST / 10, statuses
    assert "Traceback" not in server.log.read_text()


def ask(operation, mode, session, statuses):
    """Send cases of one route, and hold each answer against what the description says of it."""

    @seed(SEED)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(mode), name=st.sampled_from((None, *NAMES)))
    def asks(case, name):
        if name and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = name
        answer = case.call(session=session)
        statuses[answer.status_code] += 1
        assert answer.status_code < 300 or answer.headers["content-type"] == ["application/json"], answer.text
        case.validate_response(answer, checks=CHECKS)

    asks()
