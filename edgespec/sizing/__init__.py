"""How large a tree: policies behind one contract, and the rule that sizes by measured cost.

contract     what a policy answers and what it is told
policies/    one module per policy                      parse        policies by name
rule         tokens - lambda x time                     calibration  confidence to acceptance
costs        a profile's curves, as they are now        drift        how far rounds part from them
budgets      limits                                     room         what they leave of a round
growths      chains or steps                            whether      to draft at all
hindsight    what a round teaches                       experience   what earlier requests taught
lengths      when drafting should begin
"""

from edgespec.sizing.contract import Feedback, Growth, Policy, Root, Setting, Sizer
from edgespec.sizing.parse import parse_policy
from edgespec.sizing.policies.eagle2 import Eagle2
from edgespec.sizing.policies.plain import Plain
from edgespec.sizing.policies.rolling import RollingBestN
from edgespec.sizing.policies.sized import Sized
from edgespec.sizing.policies.survey import Survey
from edgespec.sizing.policies.threshold import Threshold

__all__ = [
    "Eagle2",
    "Feedback",
    "Growth",
    "Plain",
    "Policy",
    "RollingBestN",
    "Root",
    "Setting",
    "Sized",
    "Sizer",
    "Survey",
    "Threshold",
    "parse_policy",
]
