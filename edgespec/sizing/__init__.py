"""How large a tree: policies behind one contract, and the rule that sizes by measured cost.

contract     what a policy answers and what it is told       budgets      limits
policies/    one module per policy                           parse        policies by name
"""

from edgespec.sizing.contract import Feedback, Growth, Policy, Root, Setting, Sizer
from edgespec.sizing.parse import parse_policy
from edgespec.sizing.policies.eagle2 import Eagle2
from edgespec.sizing.policies.plain import Plain
from edgespec.sizing.policies.rolling import RollingBestN
from edgespec.sizing.policies.survey import Survey

__all__ = [
    "Eagle2",
    "Feedback",
    "Growth",
    "Plain",
    "Policy",
    "RollingBestN",
    "Root",
    "Setting",
    "Sizer",
    "Survey",
    "parse_policy",
]
