"""Feature-level drafts ("heads"): EAGLE-1/2, EagleVLM, MSD, ViSpec, SpecVLM and EAGLE-3.

``geometry`` and ``layouts`` need no torch; ``modules`` and ``compressors`` are the torch originals
that graphs are proven against and that ``distill`` trains.
"""
