"""An embedder is trained for one step, and its folder loads."""

import sys
import tempfile
from pathlib import Path

from bge_runtime import Embedder
from bge_runtime.evaluation import Judgements
from bge_runtime.training import Example, TrainingData, TrainingSettings, mine, train_embedder

examples = tuple(Example(query=f"cat {at}", positives=(f"The cat is in house {at // 2}.",)) for at in range(60))
data = TrainingData(name="cats", examples=examples)
guard = Judgements(name="one", queries={"q": "dog"}, grades={"q": {"d": 1}}, documents={"d": "A dog.", "e": "A hen."})
with tempfile.TemporaryDirectory() as folder:
    done = train_embedder(
        mine(data, Embedder(sys.argv[1]), negatives=1).data,
        Path(folder) / "out",
        model=sys.argv[1],
        settings=TrainingSettings(max_steps=1, negatives=1, batch_size=4, evaluations=1),
        guard=guard,
        force=True,
    )
    assert len(done.report["history"]["losses"]) == 1
    assert Embedder(str(done.folder)).encode_queries(["cat"]).shape[0] == 1
