"""Comparison with FlagEmbedding itself; `make reference-check` runs it.

`cases.py` says what is compared, `compute.py` computes it with FlagEmbedding in an environment of its own
(`requirements.txt`), `ours.py` with this project, and `check.py` compares. `check.py --write` keeps an extract in
`tests/data/flagembedding`, which the tests compare with where FlagEmbedding is not installed.
"""
