"""Conformance of mixers to the contract, public: for the library's own and for a user's.

from seriatim.testing import check_mixer
check_mixer(MyMixer(dim=32))          # raises ConformanceError, which says what does not hold
"""

from seriatim.testing.conformance import CHECKS, check_mixer
from seriatim.testing.report import ConformanceError, Report

__all__ = ["CHECKS", "ConformanceError", "Report", "check_mixer"]
