"""Other people's implementations as oracles; `make oracle` puts them into the folder .oracle, without it tests skip."""

import sys

from tests.helpers import ROOT

sys.path.append(str(ROOT / ".oracle"))  # behind .venv, whose torch, numpy and gymnasium are the ones
