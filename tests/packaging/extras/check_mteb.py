"""The extra `mteb`: the package is there, and knows the runtime's model class."""

import sys

import mteb
from mteb.models import EncoderProtocol

from bge_runtime.evaluation import BGEEncoder

assert mteb.get_task("SciFact").metadata.name == "SciFact"
assert isinstance(BGEEncoder(sys.argv[1]), EncoderProtocol)
print("mteb", mteb.__version__)
