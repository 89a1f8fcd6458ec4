"""``edgespec distill``: drafts trained with the frozen target in the loop (needs torch).

Source: SpecVLM's online-logit distillation (arXiv 2509.11815), with the rollouts of EAGLE-3 and
ViSpec and ViSpec's rank loss as options.
"""
