"""Retrieval metrics and plots work."""

import ir_measures
import matplotlib as plotting
import pytrec_eval
from ir_measures import nDCG

plotting.use("Agg")
from matplotlib import pyplot

judgements = {"q": {"a": 1, "b": 0}}
run = {"q": {"a": 0.5, "b": 0.9}}
expected = 0.6309
assert abs(ir_measures.calc_aggregate([nDCG @ 10], judgements, run)[nDCG @ 10] - expected) < 1e-4
scores = pytrec_eval.RelevanceEvaluator(judgements, {"ndcg_cut.10"}).evaluate(run)
assert abs(scores["q"]["ndcg_cut_10"] - expected) < 1e-4
assert pyplot.subplots()
