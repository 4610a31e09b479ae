"""Mix models with LM-Cocktail itself, in the environment of `requirements.txt`, without anything of ours.

    python mix.py KIND OUT WEIGHT FOLDER [WEIGHT FOLDER ...]

KIND is LM-Cocktail's: encoder or reranker.
"""

from __future__ import annotations

import sys

from LM_Cocktail import mix_models

if __name__ == "__main__":
    kind, out, *pairs = sys.argv[1:]
    mix_models(pairs[1::2], kind, [float(each) for each in pairs[0::2]], out)
