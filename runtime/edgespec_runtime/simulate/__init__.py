"""Replaying recorded answers on a device that is not at hand. Needs no model and no engine.

lines     traces read strictly           answers   lines to answers: what was proposed where
oracle    children and the target's tokens along one answer; what was never seen is drawn
session  draft  verifier  clock          the runtime's own contracts over them, and modelled time
network   a profile with its target elsewhere
replay    the real decoding loop         cells  report   figures, and their table
"""
